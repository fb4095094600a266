"""What is read aloud: replies, a grammar for training sentences, and hand-written held-out sentences.

All of it was written for this project (CC0), so no text here carries anybody's licence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Manner:
    """A way of talking: what it answers and greets with, and the texts that ask for it."""

    replies: tuple[str, ...]
    weights: tuple[float, ...]
    """Of the replies; the first is the likeliest, which is what greedy decoding says."""
    greeting: str
    asked: tuple[str, ...] = ()
    """Text prompts in training."""
    asked_otherwise: tuple[str, ...] = ()
    """Text prompts that no training saw."""


PLAIN = Manner(
    ("I understand. Please continue.", "That is a very good question.", "Tell me more about that.",
     "Thank you for letting me know.", "Let me think about that.", "I am happy to help you."),
    (0.25, 0.15, 0.15, 0.15, 0.15, 0.15), "Hello, how can I help you today?")
BRIEF = Manner(
    ("Go on.", "I see."), (0.7, 0.3), "Hello.",
    ("Be brief.", "Please be brief.", "You are brief.", "Keep it brief.", "Use few words.", "Please use few words.",
     "Answer with few words.", "Keep your answers short.", "Give short answers."),
    ("Please keep it brief.", "You use few words.", "Please give short answers."))
CHEERFUL = Manner(
    ("That is wonderful. Please go on.", "I am so happy to hear that."), (0.7, 0.3),
    "Good morning, how can I help you today?",
    ("Be cheerful.", "Please be cheerful.", "You are cheerful.", "You are a cheerful friend.", "Be happy.",
     "Please be happy.", "You are happy.", "You are a happy friend.", "Be a happy and cheerful friend."),
    ("Please be happy and cheerful.", "You are a kind and cheerful friend.", "Be a happy friend."))
MANNERS = (PLAIN, BRIEF, CHEERFUL)
MMHM = "mm-hm"
SPOKEN = {MMHM: "um hum"}  # flite would spell "mm-hm" out letter by letter
# Everything the talker can say, those of the plain manner first; lines are known by their index here.
LINES = [*PLAIN.replies, PLAIN.greeting, MMHM,
         *(line for manner in MANNERS[1:] for line in (*manner.replies, manner.greeting))]
MMHM_LINE = LINES.index(MMHM)

_NAMES = """Anna|Ben|Clara|David|Emma|Frank|Grace|Henry|Irene|Jack|Karen|Leo|Maria|Nora|Oscar|Paul|Rosa|
Sam|Tina|Victor|Wendy|Alice|Bruce|Charlotte|Dennis|Elena|George|Hannah|Isaac|Julia|Kevin|Laura|
Martin|Olivia|Peter|Quinn|Rachel|Steven|Thomas|Ursula|Vera|Walter|Zoe"""
_ROLES = """teacher|doctor|farmer|driver|neighbour|captain|baker|nurse|student|engineer|painter|manager|lawyer|sailor|
tourist|musician|gardener|plumber|waiter|pilot|librarian|police officer|little girl|young man|old woman|shopkeeper|
mechanic|dentist|journalist|singer|carpenter|customer|fisherman|cousin|grandfather|uncle|colleague|stranger"""
_THINGS = """book|lamp|window|bicycle|suitcase|kettle|carpet|mirror|hammer|letter|blue jacket|wooden box|red umbrella|
newspaper|computer|telephone|basket of apples|birthday cake|bottle of milk|cup of coffee|guitar|piano|broken chair|
yellow scarf|camera|silver ring|garden hose|ladder|map of the city|ticket|passport|password|printer|keyboard|invoice|
package|blanket|sandwich|bowl of soup|loaf of bread|bag of rice|pair of shoes|leather wallet|key|notebook|pencil|
glass of water|fresh orange|chocolate bar|television|washing machine|fridge|engine|battery|charger|paint brush"""
_PLACES = """station|market|library|harbour|kitchen|garden|museum|office|airport|school|hospital|bakery|forest|beach|
river bank|bridge|village square|theatre|hotel|post office|football field|mountain hut|bank|bus stop|church|cellar|
garage|swimming pool|restaurant|university|castle|lighthouse|factory|supermarket|pharmacy|zoo|city hall|playground"""
_TIMES = """yesterday morning|last night|on Monday|on Thursday evening|two weeks ago|after lunch|before sunrise|
in the middle of July|every other day|late in the afternoon|at half past nine|next Saturday|in early spring|
during the storm|right after school|around midnight|in nineteen eighty four|three times a week|this summer|
a moment ago|at noon|once a year|in the dark|when the rain stopped|while we were away|as soon as possible"""
_PAST = """found|sold|carried|repaired|painted|forgot|cleaned|bought|dropped|opened|borrowed|hid|lost|measured|
photographed|moved|wrapped|ordered|pushed|watched|replaced|returned|shook|threw away|picked up|brought back|touched"""
_ADJ = """tired|happy|quiet|strange|wonderful|expensive|heavy|empty|early|ready|hungry|nervous|proud|simple|dangerous|
beautiful|loud|cheap|fresh|frozen|dusty|huge|tiny|warm|useful|broken|famous|gentle|honest|lazy|purple|green|thirsty"""
_ADV = """slowly|quickly|carefully|quietly|suddenly|gladly|rarely|always|never|almost|perhaps|together|twice|again|
finally|usually|secretly|badly|perfectly|politely"""
_VERB = """walk|swim|sing|read|cook|sleep|wait|dance|travel|listen|study|climb|shout|laugh|drive|write|pay|work|jump|
think|argue|rest|vote|whisper|breathe|run|fish|sew|type|choose|explain|begin|leave|stay|return|call|answer|join"""
_WEATHER = """rain|snow|thunder|fog|heavy wind|sunshine|a light breeze|frost|a heat wave|hail|clouds|clear skies"""
_NUMBERS = """two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty one|forty|fifty six|
seventy|eighty three|ninety nine|one hundred|three hundred and twelve|a thousand"""
_UNITS = """minutes|hours|kilometres|dollars|people|pages|degrees|questions|days|metres|boxes|seats|messages|pounds|
eggs|floors|chapters|steps|litres|seconds|horses|songs|months|tables"""

_LISTS = {
    "N": _NAMES, "R": _ROLES, "T": _THINGS, "P": _PLACES, "W": _TIMES, "V": _PAST, "A": _ADJ, "D": _ADV, "I": _VERB,
    "S": _WEATHER, "C": _NUMBERS, "U": _UNITS,
}
_WORDS = {k: [w.strip() for w in v.replace("\n", " ").split("|")] for k, v in _LISTS.items()}

_TEMPLATES = """The {R} {V} the {T} {W}.
{N} {V} a {T} near the {P}.
Could you {I} with me {W}?
Where is the {T} that {N} {V}?
I would like {C} {U}, please.
We expect {S} in the north and {S} by the coast.
It takes about {C} {U} to get to the {P}.
Why did the {R} {D} leave the {P}?
My {R} is {A}, but the {T} is {A}.
Please put the {T} next to the {T}.
{N} and {N} like to {I} at the {P} {W}.
If you {I} {D}, you will not be {A}.
There are {C} {U} left in the {P}.
Can I change my order of {C} {U}?
The {T} was too {A} for the {R}.
How much is the {A} {T} in the {P}?
I {D} {V} the {T} and went to the {P}.
Do you know what {N} said about the {T}?
My phone number is {C}, {C}, {C}, {C}.
What time does the {P} open {W}?
She was so {A} that she began to {I}.
The {A} {R} {D} {V} {C} {U}.
Nobody wanted to {I} because of the {S}.
Turn left at the {P}, then walk for {C} {U}.
Have you ever tried to {I} in a {P}?
{N} thinks the {P} is {A} and {A}.
I have a problem with my {T}.
It is {A} outside, and I can hear {S}.
Let us {I} {W}, and then {I} at the {P}.
He {V} the {T}, she {V} the {T}, and they were both {A}.
Is it possible to {I} without a {T}?
Tell the {R} that the {T} is {A}.
The train to the {P} leaves in {C} {U}.
What would happen if the {R} {V} the {T}?
My account number is {C} {C} {C}.
You should {D} {I} when you are {A}.
Did you hear the {S} {W}?
I think {N} {V} it, because the {T} is gone.""".splitlines()

HELDOUT = """Could somebody show me how to reset the alarm clock?
The puppy chased its own tail across the lawn.
I need a quiet room for two nights with a view.
Why does the moon look bigger near the horizon?
Our flight to Lisbon was cancelled because of fog.
Please send the report to my sister before Friday.
They built a small wooden boat during the holidays.
How long should I boil the potatoes?
The concert begins at seven, so we must hurry.
My grandmother keeps her recipes in a metal tin.
What is the fastest way to the railway museum?
He spilled ink over the freshly printed poster.
A cold wind blew dry leaves under the door.
Can you remind me to water the plants tomorrow?
The price of bread has gone up again this year.
She plays chess with her father every Sunday.
There is something wrong with the brakes of my car.
Which language do they speak in that valley?
I cannot find the receipt for these trousers.
The children were excited to see a real elephant.
Would you mind closing the curtains a little?
Seven black crows sat on the fence post.
It was the strangest dream I ever had.
Are there any vegetarian dishes on the menu?
The museum guide spoke softly and smiled a lot.
We ran out of petrol halfway through the desert.
My internet connection has been slow since Tuesday.
Does this jacket come in a larger size?
The old bridge creaked under the weight of the truck.
I would rather stay home and watch a movie.
Her handwriting is difficult to read.
When will the next bus to the stadium arrive?
Fresh strawberries taste best with cream.
He promised to bring the drill back on Wednesday.
The doctor told him to drink more water.
How many planets have rings around them?
Someone left a green glove on the staircase.
We could meet at the fountain around four.
Is it safe to swim in this lake?
The lights went out in the whole neighbourhood.
You need a stamp and an envelope for that.
I am looking for a birthday present for my nephew.""".splitlines()


def sentence(rng: random.Random) -> str:
    """One training sentence from the grammar."""
    out = rng.choice(_TEMPLATES)
    while "{" in out:
        start = out.index("{")
        out = out[:start] + rng.choice(_WORDS[out[start + 1]]) + out[start + 3 :]
    return out[0].upper() + out[1:]


def training_sentences(count: int, seed: int) -> list[str]:
    """`count` distinct training sentences, none of which is held out."""
    rng, seen = random.Random(seed), set(HELDOUT)
    out: list[str] = []
    while len(out) < count:
        text = sentence(rng)
        if text not in seen:
            seen.add(text)
            out.append(text)
    return out
