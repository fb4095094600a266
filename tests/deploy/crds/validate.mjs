// Reads documents as JSON from stdin, and prints what is wrong with those that are custom resources, one line each.
import { readFileSync } from 'node:fs';

const PACKAGES = {
  'cert-manager.io': '@kubernetes-models/cert-manager',
  'gateway.networking.k8s.io': '@kubernetes-models/gateway-api',
  'keda.sh': '@kubernetes-models/keda',
  'monitoring.coreos.com': '@kubernetes-models/prometheus-operator',
};

let checked = 0;
for (const document of JSON.parse(readFileSync(0, 'utf8'))) {
  const [group] = document.apiVersion.split('/');
  if (!(group in PACKAGES)) continue;
  const name = `${document.kind}/${document.metadata.name}`;
  try {
    const { [document.kind]: Model } = await import(`${PACKAGES[group]}/${document.apiVersion}/${document.kind}`);
    new Model(document).validate();
    checked += 1;
  } catch (error) {
    console.log(`${name}: ${error.message}`);
  }
}
console.error(checked);
