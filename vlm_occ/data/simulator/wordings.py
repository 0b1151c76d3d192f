"""The wordings of attributes, relations, orders and whole sentences, in the lexicons of lexicon.py."""

from __future__ import annotations

from vlm_occ.data.simulator.lexicon import Lexicon, Table, parse_tables
from vlm_occ.data.simulator.more_words import MORE_ADJECTIVES, MORE_FRAMES, MORE_PHRASES
from vlm_occ.types import NUMBER_WORDS

ADJECTIVES = parse_tables(
    """
white: white / white | snowy
black: black / black | jet-black
grey: grey | gray / silver | ash-coloured
red: red / crimson | scarlet
blue: blue / navy | azure
green: green / emerald | green
yellow: yellow / yellow | lemon-coloured
orange: orange / orange | amber
brown: brown / tan | chestnut
small: small | little / tiny | compact
large: large | big / bulky | sizeable
parked: parked / unattended
stopped: stopped | waiting / halted
stationary: stationary / motionless | immobile
moving: moving | driving / rolling
walking: walking / strolling
standing: standing / loitering
oncoming: oncoming | approaching / inbound
leaving: departing / receding
nearest: nearest | closest / least distant
farthest: farthest | furthest / remotest
leftmost: leftmost / outermost left-hand
largest: largest | biggest / bulkiest
smallest: smallest / tiniest
""",
    MORE_ADJECTIVES,
)
"""Modifiers that stand before the noun."""

PHRASES = parse_tables(
    """
left: on the left | on our left | to the left | on the left side | to our left | on your left / on the
  left-hand side | off to our left-hand flank | over on the left flank
ahead: ahead | ahead of us | in front of us | up ahead | in front / before us | in our forward view
straight: straight ahead | directly in front of us | straight in front of us / dead in line with our bonnet
  | squarely before us
behind: behind us | at the back | behind our car | in back of us / to our rear | in our rear-view mirror
beside: beside us | next to us | at our side / abreast of us | level with our doors
ahead left: ahead on the left | in front of us on the left | at the front left | up ahead on our left | on
  the left ahead of us / before us on the left-hand side | off our forward left-hand corner
behind left: behind us on the left | at the back left | behind us to the left | on the left behind us / to
  our rear on the left-hand side | off our rear left-hand corner
beside left: next to us on the left | on the left beside us / abreast of us on the left-hand side | level
  with our left-hand doors
parked: that is parked | parked there / with nobody in it
stopped: that has stopped | that is waiting / that came to a halt
stationary: that is not moving | standing still / that stays put
moving: that is moving | that is driving | which is on the move / that is under way
walking: that is walking | who is walking | on the move / out for a stroll
standing: who is standing | that is standing still / that stays put
oncoming: coming towards us | coming our way | approaching us / drawing nearer to us | bearing down on us
leaving: moving away from us | going away from us / distancing itself from us | receding from us
heading left: moving to the left | going left | heading to the left / making for the left-hand side
road: on the road | on the street | in the road / on the carriageway | on the tarmac
pavement: on the pavement | on the sidewalk / on the footpath | on the walkway
kerb: at the kerb | at the curb | at the side of the road | at the roadside / along the gutter | at the verge
terrain: on the grass | off the road / on the turf | on the lawn
junction: at the junction | at the intersection / at the crossroads
within: less than {n} metres away | within {n} metres | not more than {n} meters away / inside a {n} metre
  radius
beyond: more than {n} metres away | over {n} metres away | farther than {n} meters from us / outside a {n}
  metre radius
about: about {n} metres away | around {n} meters away | some {n} metres from us / at a distance of roughly
  {n} m
clothes: in {c} | dressed in {c} | wearing {c} | in {c} clothes / clad in {c} | in {c} attire
from left: from the left | counting from the left / reckoned from the left-hand end
next_to: next to | beside | by | directly next to / adjacent to | alongside
near: near | close to | not far from / in the vicinity of | within a few steps of
behind_it: behind | just behind / to the rear of
in_front_of: in front of | just in front of / ahead of the nose of
beyond_it: beyond | on the far side of / past
nearer_than: on the near side of | on our side of / this side of
left_of: to the left of | left of | on the left of / on the left-hand side of
between: between {a} and {b} | in between {a} and {b} / sandwiched by {a} and {b} | with {a} and {b} to
  either side
closest_to: closest to | nearest to / at the shortest distance from
""",
    MORE_PHRASES,
)
"""Modifiers that stand behind the noun."""

_ORDINALS: Table = {"2": ("second {a} {n}",), "3": ("third {a} {n}",)}
ORDINALS: dict[Lexicon, Table] = {
    "train": _ORDINALS,
    "wide": _ORDINALS,
    "heldout": {"2": ("{a} {n} but one",), "3": ("{a} {n} but two",)},
}
"""Ranks above the first, around an order's adjective `{a}` and a noun group `{n}`."""

FRAMES = parse_tables(
    """
expression: {the} | {the} | {the} | {the} | find {the} | show me {the} | where is {the}? | could you find
  {the} | can you show me {the}? | please mark {the} | look for {the} | I am looking for {the} | point at
  {the} | which one is {the}? | do you see {the}? | I mean {the} | highlight {the} | where can I see {the}?
  / {the} | pinpoint {the} | identify {the} | kindly indicate {the} | single out {the} | draw an outline
  round {the} | have you noticed {the}? | tell us the whereabouts of {the}
existence: is there {a}? | do you see {a}? | can you find {a}? | show me {a} | is there {a} anywhere? | I am
  looking for {a} | find me {a} / does {a} appear hereabouts? | pinpoint {a} | have you noticed {a}? |
  identify {a}, if present
many: {the} | {the} | {the} | find {the} | show me {the} | where are {the}? | please mark {the} | can you
  show me {the}? | look for {the} | highlight {the} | do you see {the}? | point at {the} / {the} | pinpoint
  {the} | identify {the} | kindly indicate {the} | single out {the} | tell us the whereabouts of {the}
many command: watch out for {the} | drive around {the} | be careful with {the} | keep away from {the} | do
  not hit {the} | slow down near {the} / beware of {the} | steer clear of {the} | skirt round {the}
any: stop next to {the} | park next to {the} | pull over beside {the} | pull up next to {the} | stop near
  {the} | park close to {the}, please | watch out for {the} | be careful with {the} | drive around {the} |
  turn left after {the} | turn right after {the} | drop me off at {the} | let me out by {the} | do not hit
  {the} | do not get too close to {the} | keep an eye on {the} | stop before you reach {the} | go past {the}
  and then pull over | slow down when you get to {the} | once you have passed {the}, take the next street |
  could you stop at {the}? I want to take a look | I have to get out, stop by {the} / come to rest adjacent
  to {the} | draw up by {the} | steer clear of {the} | beware of {the} | swing left upon clearing {the} |
  swing right upon clearing {the} | set us down at {the} | skirt round {the} | avoid {the} | allow ample room
  to {the}
vehicle: park behind {the} | pull up behind {the} | stop behind {the} | park in front of {the} | stay behind
  {the} | change lanes and get behind {the} | my friend is in {the}, stop next to it | there is a parking
  spot behind {the}, take it | pull in after {the} | park on the side of the street, close to {the} / tuck
  in to the rear of {the} | line ourselves up with {the} | grab that gap at the tail of {the} | sit to the
  rear of {the}
moving vehicle: follow {the} | overtake {the} | pass {the} when it is safe | let {the} pass | let {the} go
  first | give way to {the} | keep your distance from {the} | drive behind {the} | go faster and get in
  front of {the} | slow down, {the} is coming / trail {the} | shadow {the} | yield to {the} | outrun {the} |
  hang back from {the}
person: pick up {the} | stop for {the} | let {the} cross | wait for {the} | I know {the}, pull over | honk
  at {the} | {the} is my friend, stop here | let me talk to {the} | stop, so that {the} can get in / collect
  {the} | invite {the} aboard | greet {the} | grant priority to {the}
""",
    MORE_FRAMES,
)
"""Sentences around a description: `{the}` a definite noun phrase, `{a}` an indefinite one."""

SITUATIONS = parse_tables("""
start: I am standing | I stand | I'm standing | I am / I find myself | I have positioned myself
behind: behind {a} | from the back of {a}, behind it / to the rear of {a}
front: in front of {a} | from the front of {a}, ahead of it / off the nose of {a}
left: off the left side of {a} | beside {a}, on its left side / off the left-hand flank of {a}
same: facing the same way as it | looking the same way as it / aligned with its heading
opposite: facing the opposite way to it | looking the other way from it / turned against its heading
it: facing it | looking at it | looking towards it / gazing at it
away: with my back to it | facing away from it / turned away from it
towards: facing {b} | looking at {b} | looking towards {b} / gazing at {b} | turned towards {b}
halfway: halfway between {a} and {b} | exactly in the middle between {a} and {b}
  / at the midpoint of {a} and {b}
line: from the middle of {a} on the straight line to {b} / from the centre of {a} along the path to {b}
near: near | close to | next to / in the vicinity of | a few steps from
ego front: in front of your car | ahead of your car / before your car
ego behind: behind your car | behind the car that you drive / to the rear of your car
ego left: to its left | to the left of it / to its left-hand side
with left: with {b} on my left | with {b} to my left | where I see {b} on my left
  / so that {b} lies off my left-hand flank
with ahead: with {b} in front of me | with {b} ahead of me | where I see {b} straight in front of me
  / so that {b} lies before me
with behind: with {b} behind me | with {b} behind my back / so that {b} lies to my rear
and left: and {b} on my left | and {b} to my left | and I see {b} on my left / and {b} off my left-hand flank
and ahead: and {b} in front of me | and {b} ahead of me / and {b} before me
and behind: and {b} behind me | and {b} behind my back / and {b} to my rear
""")
"""Parts of a description of where somebody stands and looks; `it` is the object `{a}`."""

_DETERMINERS: Table = {
    "one": ("the", "the", "the", "the", "the", "the", "that"),
    "all": ("all the", "all", "the", "all of the", "every"),
}
DETERMINERS: dict[Lexicon, Table] = {
    "train": _DETERMINERS,
    "wide": _DETERMINERS,
    "heldout": {"one": ("the", "the", "the", "this"), "all": ("each of the", "each", "the entire set of")},
}
NUMBERS = NUMBER_WORDS[:11]
"""Larger ones are written in digits."""
