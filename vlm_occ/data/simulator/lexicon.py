"""The words of the simulator's sentences: two disjoint lexicons, and the mirror image of a sentence.

`train` is what models learn from, and known words in evaluation; `wide` is more of it, for training alone;
`heldout` tests unseen words. What is disjoint (the tests hold it):
- nouns: no token of a held-out noun has the stem (the token without its inflection) of any training word,
  be it of a noun, an attribute, a relation or a sentence frame; stems of four letters or more occur in no
  training word either;
- sentence frames: no held-out frame is a training frame but the bare description, and their content words
  share no stem;
- attributes, places, motions, relations and orders: no held-out phrase is a training phrase.
Shared: articles, prepositions, pronouns, numbers, `left` and `right`, the colours without an everyday
synonym, and the answers, which are composed of training words in both lexicons.

Tables hold `key: training wordings / held-out wordings`, wordings separated by `|`. All of them were
written for this project; Talk2Car and nuScenes were read for their style only.
"""

from __future__ import annotations

import re

from vlm_occ.data.simulator.more_words import MORE_NOUNS
from vlm_occ.situated import Lexicon

Table = dict[str, tuple[str, ...]]

_SIDE = re.compile(r"\b(left|right)(?=most\b|wards?\b|hand\b|\b)", re.IGNORECASE)
_IDIOM = re.compile(
    r"(?<!the )(?<!\ba )(?<!\bon )(?<!our )(?<!your )(?<!my )(?<!to )(?<!from )(?<!turn )"
    r"(?<!front )(?<!back )"
    r"\bright (?:next|behind|there|here|away|now|in front|beside|before|after)\b"
    r"|\ball right\b|\b(?:has|have|had) left\b|\bleft the\b",
    re.IGNORECASE,
)
_OTHER_SIDE = {
    "left": "right",
    "right": "left",
    "Left": "Right",
    "Right": "Left",
    "LEFT": "RIGHT",
    "RIGHT": "LEFT",
}


def flip_text(text: str) -> str:
    """The sentence for the mirrored scene: left and right swapped, also in left-hand, leftmost, leftward.

    `right` as an adverb ("right behind us") and `left` as a verb ("has left") stay.
    """
    kept = [match.span() for match in _IDIOM.finditer(text)]

    def swap(match: re.Match[str]) -> str:
        idiom = any(start <= match.start() < end for start, end in kept)
        return match.group() if idiom else _OTHER_SIDE[match.group()]

    return _SIDE.sub(swap, text)


def parse_tables(source: str, more: str = "") -> dict[Lexicon, Table]:
    """Parse `key: a | b / c | d` lines; a key `left` or `left_of` gets its mirror image `right...`.

    Lines `key: e | f` of `more` are what `wide` has besides `train`.
    """
    tables: dict[Lexicon, Table] = {"train": {}, "wide": {}, "heldout": {}}
    for line in _lines(source):
        key, _, wordings = line.partition(":")
        halves = wordings.split(" / ")
        for lexicon, table in tables.items():
            _add(table, key.strip(), halves[-1] if lexicon == "heldout" else halves[0])
    for line in _lines(more):
        key, _, wordings = line.partition(":")
        _add(tables["wide"], key.strip(), wordings)
    return tables


def _lines(source: str) -> list[str]:
    """Lines of a table, those that begin with blanks joined to the ones before."""
    return source.strip().replace("\n  ", " ").splitlines()


def _add(table: Table, key: str, wordings: str) -> None:
    """Add wordings, separated by `|`, to a key of a table and their mirror images to its mirror image."""
    words = tuple(word.strip() for word in wordings.split("|"))
    table[key] = table.get(key, ()) + words
    if "left" in key:
        mirrored = flip_key(key)
        table[mirrored] = table.get(mirrored, ()) + tuple(flip_text(word) for word in words)


def flip_key(key: str) -> str:
    """The mirror image of a key of these tables: `left_of` and `right_of`, `leftmost` and `rightmost`."""
    return re.sub("left|right", lambda match: _OTHER_SIDE[match.group()], key)


NOUNS = parse_tables(
    """
car: car | passenger car | motorcar | family car | private car / automobile | auto | runabout
pedestrian: pedestrian | person | person on foot | human / passer-by | individual | bystander
truck: truck | delivery truck | cargo truck | freight truck | goods vehicle / lorry | juggernaut | HGV
bicycle: bicycle | bike | pushbike | cycle | pedal bike / velocipede | fixie
animal: animal | creature | four-legged animal | animal on four legs / beast | critter | quadruped
movable object: movable object | pushable object | movable thing | wheeled object / portable gear
  | haulable gear
traffic cone: traffic cone | cone | road cone | safety cone | warning cone / pylon | witch's hat | channelizer
debris: piece of debris | pile of debris | piece of trash | pile of rubbish | bit of litter / jumble of junk
  | clump of scrap
construction vehicle: construction vehicle | construction machine | building machine | work machine
  / earthmover | heavy rig
trailer: trailer | cargo trailer | tow trailer | truck trailer | freight trailer / drawbar rig
  | hauled platform
emergency vehicle: emergency vehicle | rescue vehicle | emergency car | blue-light vehicle / responder unit
  | siren unit
bicycle rack: bicycle rack | bike rack | bike stand | rack for bikes | bicycle stand / docking frame
  | Sheffield hoop
barrier: barrier | traffic barrier | road barrier | barricade | road block / hurdle | parapet
motorcycle: motorcycle | motorbike | motor bike | motor cycle / moped | scooter
bus: bus | city bus | passenger bus | public bus | line bus / coach | charabanc | shuttle
sedan: sedan | saloon / notch-rear
hatchback: hatchback | hatch / liftgate auto
estate: estate | station wagon | estate car / shooting brake
suv: SUV | jeep | off-roader / crossover
van: van | minivan | delivery van | panel van / MPV | Sprinter
pickup: pickup | pickup truck / ute
box truck: box truck | moving truck / luton
flatbed truck: flatbed truck | flatbed / dropside lorry
tanker: tanker | tank truck | tanker truck / bowser
tow truck: tow truck | breakdown truck / wrecker
tractor unit: semi tractor | tractor | truck without a trailer / bobtail
double-decker: double-decker | double-decker bus | two-storey bus / Routemaster
articulated bus: articulated bus | bendy bus / accordion coach
excavator: excavator | crawler excavator | hydraulic excavator | tracked excavator / digger | backhoe
  | power shovel
loader: wheel loader | loader | front loader / bucket scooper
dumper: dumper | dump truck | dumping truck / tipper
crane: crane | mobile crane | crane truck / hoist | derrick
police car: police car | police vehicle | police cruiser / squad auto | patrol auto
ambulance: ambulance | ambulance vehicle / paramedic unit | medic unit
fire engine: fire engine | fire truck | fire brigade vehicle / pumper | ladder rig
adult: man | woman | guy | lady | grown man / bloke | gent
child: child | kid | boy | girl / youngster | infant
worker: worker | construction worker | road worker / labourer | navvy
cyclist: cyclist | bike rider | person on a bike / velocipedist
dog: dog | puppy | stray dog / hound | canine | pooch
deer: deer | roe deer / stag | doe
cow: cow | head of cattle / bovine | heifer
bin: bin | trash can | garbage bin | wheelie bin | rubbish bin / refuse container
pushchair: pushchair | stroller | baby carriage | buggy / pram | perambulator
trolley: trolley | cart | hand cart | shopping trolley / dolly | gurney
skip: skip | dumpster / hopper
pallet: pallet | loaded pallet | pallet of boxes / skid | stillage
heap: pile of dirt | pile of soil | mound of dirt / hillock | spoil bank
boards: pile of boards | stack of boards | pile of planks / bundle of lumber | bundle of timber
bags: pile of bags | pile of trash bags | heap of bags / clump of sacks
concrete barrier: concrete barrier | jersey barrier | concrete road barrier / stone parapet
plastic barrier: plastic barrier | water barrier | plastic road barrier / polymer hurdle
fence: fence | construction fence | metal fence / lattice hurdle | hoarding
delineator: delineator | marker post | delineator post / bollard | stake
vehicle: vehicle | motor vehicle / conveyance
thing: object | thing / item | entity
""",
    MORE_NOUNS,
)
"""Names of classes, of narrower kinds and of wider ones; plurals are formed by `plural`."""

_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "passer-by": "passers-by",
    "deer": "deer",
    "gear": "gear",
    "reindeer": "reindeer",
    "calf": "calves",
    "ox": "oxen",
}


def plural(noun: str) -> str:
    """The plural of a noun of the table; the head is the last word before a preposition."""
    cut = re.search(r" (?:of|in|for|on|with|without) ", noun)
    head, rest = (noun, "") if cut is None else (noun[: cut.start()], noun[cut.start() :])
    start, gap, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    else:
        last += "s"
    return start + gap + last + rest


def with_article(phrase: str) -> str:
    """The phrase with `a` or `an`."""
    sounds_like_vowel = phrase[0].lower() in "aeio" or phrase.startswith(("SUV", "MPV", "HGV", "un"))
    return ("an " if sounds_like_vowel else "a ") + phrase
