"""Write docs/configuration.md from the config classes; with --check, say whether it is what they say."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from scripts.check_manifests import CONFIGS, CONTROLLERS, PREFIX, ROOT
from services.mesh.config import EngineConfig, ProcessConfig, ServiceConfig

PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Written by `python -m scripts.configuration` from the services' own classes; `make lint` compares them. Every setting is
a flag of `python -m services.NAME`, and an environment variable: `--drain-s 60` is `MOSHIMESH_DRAIN_S=60`. Flags beat
variables, which beat defaults; a variable that is empty counts as unset. A value that is wrong ends the process at
once, with one line that says what is accepted. OpenTelemetry's own variables are in [telemetry.md](telemetry.md).
"""


def page() -> str:
    """The whole document."""
    shared = [("Every process", ProcessConfig, None), ("Every service", ServiceConfig, ProcessConfig),
              ("Codec and language model", EngineConfig, ServiceConfig)]
    services = [(f"`services.{name}`", config, EngineConfig if issubclass(config, EngineConfig) else ServiceConfig)
                for name, config in CONFIGS.items()]
    controllers = [(f"`services.{name}`", config, ProcessConfig) for name, (config, _) in CONTROLLERS.items()]
    lines = [HEAD]
    for title, kind, base in (*shared, *services, *controllers):
        doc = (kind.__doc__ or "").strip().splitlines()[0] if base is None else ""
        lines += [f"## {title}", "", *([doc, ""] if doc else []), "| variable | default | accepts | what it is |",
                  "|---|---|---|---|", *_rows(kind, base), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(kind: type[ProcessConfig], base: type[ProcessConfig] | None) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inherited = base.model_fields.get(name) if base else None
        if inherited is not None and inherited.default == field.default:
            continue
        default = "" if field.default == "" else f"`{field.default}`"
        yield f"| `{PREFIX}{name.upper()}` | {default} | {_accepted(field)} | {field.description} |"


def _accepted(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    bounds = {Ge: ("at least", "ge"), Gt: ("more than", "gt"), Le: ("at most", "le"), Lt: ("less than", "lt")}
    said = [f"{bounds[type(rule)][0]} {getattr(rule, bounds[type(rule)][1])}"
            for rule in field.metadata if type(rule) in bounds]
    name = {bool: "true, false", int: "whole number", float: "number", str: "text"}.get(kind, "")
    if isinstance(kind, types.UnionType):
        name = "text"
    return ", ".join(part for part in (name, *said) if part)


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        raise SystemExit("docs/configuration.md is not what the classes say; run python -m scripts.configuration")


if __name__ == "__main__":
    main()
