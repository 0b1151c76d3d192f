"""More wordings for training sentences: with them the `train` tables of lexicon.py are the `wide` ones.

A language model that is trained on four wordings of a meaning learns the four; on a dozen it learns what they
have in common. Evaluation sentences of known words keep to `train`, so that figures stay comparable, and what
is held out is as disjoint from these as from those (the tests hold it). A meaning without a line here has no
more. Lines are `key: wordings`, separated by `|`.
"""

MORE_NOUNS = """
car: four-wheeler | private vehicle | passenger vehicle
pedestrian: walker | figure on foot | figure
truck: goods truck | transport truck | eighteen-wheeler | transporter
bicycle: two-wheeler | mountain bike | road bike | pedal cycle
animal: wild animal | mammal | living creature
movable object: thing on wheels | loose object
traffic cone: plastic cone | roadworks cone | marker cone
debris: bit of rubble | lump of debris | piece of wreckage | scattering of litter
construction vehicle: building vehicle | site vehicle | work vehicle | site machine
trailer: towed trailer | cargo wagon | semi-trailer | caravan
emergency vehicle: vehicle of the emergency services | emergency services car | flashing-light vehicle
bicycle rack: cycle rack | cycle stand | rack for bicycles | bike holder
barrier: guard rail | crash barrier | roadblock | safety barrier
motorcycle: motorised bike | touring motorcycle | road motorcycle | dirt bike
bus: transit bus | commuter bus | omnibus | school bus
sedan: four-door sedan | three-box car | saloon car
hatchback: hatchback car | five-door car | small hatchback
estate: wagon | estate wagon | family wagon
suv: sport utility vehicle | four-by-four | off-road vehicle | land cruiser
van: cargo van | transporter van | people carrier | camper van | passenger van
pickup: pick-up | open-bed truck | pickup vehicle
box truck: box van | removal truck | cube truck | furniture truck
flatbed truck: flat truck | open flatbed | truck with an open bed
tanker: fuel truck | fuel tanker | oil truck | milk tanker | gas truck
tow truck: recovery truck | recovery vehicle | towing vehicle | towing truck
tractor unit: truck tractor | truck cab | road tractor | prime mover
double-decker: two-level bus | bus with two floors | two-floor bus
articulated bus: jointed bus | two-part bus | bus with a joint
excavator: trackhoe | mini excavator | excavating machine | excavation machine
loader: front-end loader | wheeled loader | loading machine | bulldozer
dumper: tip truck | gravel truck | quarry truck
crane: boom crane | jib crane | truck-mounted crane | tower crane
police car: cop car | police wagon | law enforcement vehicle | highway police car
ambulance: hospital car | rescue ambulance | ambulance van | hospital van
fire engine: firefighting truck | fire appliance | fire brigade truck | firefighter truck
adult: fellow | chap | adult | dude | grown-up | male | female
child: toddler | schoolchild | lad | teenager | little boy | little girl
worker: workman | builder | tradesman | roadworker | mechanic
cyclist: bicyclist | bicycle rider | person on a bicycle | pedaller
dog: doggy | mutt | terrier | pet dog | retriever
deer: reindeer | fawn | wild deer
cow: bull | calf | ox | dairy cow
bin: dustbin | waste bin | garbage can | litter bin | recycling bin
pushchair: baby buggy | baby stroller | baby cart
trolley: barrow | pushcart | wheelbarrow | luggage cart
skip: rubbish skip | waste skip | debris skip
pallet: wooden pallet | shipping pallet | cargo pallet
heap: pile of sand | heap of soil | pile of gravel | heap of sand
boards: pile of wood | stack of planks | stack of beams | heap of boards
bags: stack of bags | mound of bags | pile of garbage bags
concrete barrier: concrete wall | cement barrier | concrete block
plastic barrier: water-filled barrier | plastic wall | plastic road block
fence: railing | wire fence | mesh fence | picket fence
delineator: marker pole | road post | reflector post | guide post
vehicle: road vehicle | motorised vehicle
thing: obstacle | article
"""

MORE_ADJECTIVES = """
white: snow-white | whitish | ivory | milk-white
black: pitch-black | ebony | coal-black | blackish
grey: greyish | slate-grey | charcoal | steel-grey
red: reddish | ruby | cherry-red | fire-red | maroon
blue: bluish | sky-blue | cobalt | ocean-blue | royal-blue
green: greenish | grass-green | olive | leaf-green | lime
yellow: yellowish | golden | mustard | sun-yellow | canary
orange: orangey | tangerine | pumpkin-coloured | carrot-coloured
brown: brownish | chocolate | coffee-coloured | rust-brown | wooden-brown
small: miniature | smallish | petite | mini | short
large: huge | massive | hefty | enormous | giant
parked: parked-up | abandoned | deserted
stopped: stalled | paused | idling | resting
stationary: still | static | unmoving | fixed
moving: travelling | cruising | passing | running
walking: pacing | marching | wandering
standing: upright | still-standing
oncoming: incoming | coming | nearing | advancing
leaving: outgoing | retreating | disappearing | fleeing
nearest: most nearby | nearest-by | very nearest
farthest: most distant | most faraway | farthest-off
leftmost: left-most | furthest left | extreme left
largest: hugest | most massive | greatest | most enormous
smallest: littlest | minutest | most petite
"""

MORE_PHRASES = """
left: at the left | on the left of us | on our left side | left of us
ahead: forward of us | further ahead | up front | in our path | out in front
straight: exactly ahead | dead ahead | exactly in front of us
behind: at our back | back there | at the back of us
beside: by us | at our flank | to the side of us | by our side
ahead left: up front on the left | forward to the left | to the left in front of us
behind left: at our back on the left | back there on the left | to the left at the back
beside left: by us on the left | at our left side | to the left by our side
parked: that has been parked | that is parked up | parked over there
stopped: that is stopped | which has stopped | that has pulled up | that is at rest
stationary: that is still | not moving | staying in place | which is not moving
moving: in motion | that is travelling | which is moving | driving along
walking: walking along | taking a walk | going on foot | which is walking
standing: standing around | just standing there | which is standing
oncoming: coming at us | heading towards us | that is coming closer | getting closer to us
leaving: driving away from us | heading away from us | getting farther away | that is leaving us
heading left: travelling left | going to the left | on its way to the left | bound for the left
road: in the street | on the roadway | on the asphalt | in the lane
pavement: on the paving | on the pedestrian path | on the side path
kerb: by the kerb | on the edge of the road | along the curb | at the edge of the street
terrain: in the grass | on the meadow | on the field | off the roadway
junction: at the crossing | where the roads meet | where the streets cross
within: up to {n} metres away | no farther than {n} metres | closer than {n} metres | under {n} metres away
beyond: further away than {n} metres | beyond {n} metres | not within {n} metres
about: approximately {n} metres away | circa {n} metres away | {n} metres or so from us
clothes: with {c} clothes | in a {c} outfit | with {c} clothing | dressed all in {c}
from left: starting from the left | seen from the left | going from the left
next_to: at the side of | close beside | by the side of | neighbouring
near: nearby | in the area of | around | in the neighbourhood of | in reach of | a short way from
behind_it: at the back of | in back of | following
in_front_of: at the front of | ahead of | leading
beyond_it: on the other side of | further away than | farther off than
nearer_than: closer to us than | nearer to us than | before you reach
left_of: on the left side of | to the left side of | at the left of
between: in the middle of {a} and {b} | flanked by {a} and {b} | with {a} on one side and {b} on the other
closest_to: that is nearest to | that is closest to | with the smallest gap to
"""

MORE_FRAMES = """
expression: locate {the} | spot {the} | search for {the} | mark {the} | select {the} | I would like to see
  {the} | let me see {the} | try to find {the} | can you locate {the}? | I need {the} | please show {the} |
  what I want is {the} | check {the} | watch {the} | there, {the} | {the}, please
existence: do we have {a}? | can we see {a}? | is {a} there? | locate {a} | search for {a} |
  any sign of {a}? | is {a} anywhere near? | try to find {a}
many: locate {the} | spot {the} | search for {the} | mark {the} | select {the} | I would like to see {the} |
  try to find {the} | check {the}
many command: go around {the} | stay away from {the} | look out for {the} | mind {the}
any: wait next to {the} | pull up by {the} | drive up to {the} | drive past {the} | slow down for {the} |
  please stop at {the} | make a turn after {the} | stay away from {the} | give {the} some space | go around
  {the} | look out for {the} | mind {the} | I want to go to {the} | bring me to {the} | stop the car at {the}
vehicle: get behind {the} | drive up behind {the} | pull in behind {the} | queue behind {the} | stop right
  behind {the}
moving vehicle: go after {the} | keep behind {the} | chase {the} | stay with {the} | let {the} in | get past
  {the}
person: talk to {the} | stop and wait for {the} | get {the} | say hello to {the} | take {the} with us | watch
  out for {the}
"""
