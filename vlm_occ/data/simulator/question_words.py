"""The wordings of spatial questions in the two lexicons of lexicon.py; answers are the same in both."""

from __future__ import annotations

from vlm_occ.data.simulator.lexicon import parse_tables

QUESTIONS = parse_tables("""
counting: how many {many} are there? | count the {many} | how many {many} do you see?
  / what is the number of {many} hereabouts? | tally the {many}
existence: is there {a}? | do you see {a}? | can {a} be seen? / does {a} appear hereabouts?
  | have you noticed {a}?
colour: what colour is {the}? | which colour does {the} have? / name the hue of {the}
motion: is {the} moving, stopped or parked? | does {the} move, or is it stopped or parked?
  / moving, stopped or parked: which applies to {the}?
place: where does {the} stand? | what is {the} on? / upon which surface rests {the}?
direction from car: is {b} in front of our car, behind it, to the left or to the right?
  | in which direction from our car is {b}: in front, behind, left or right?
  / towards which flank of our own automobile lies {b}: in front, behind, left or right?
direction from object: if somebody stands at {a} and looks at {b}, is {c} in front, behind, left or right?
  | standing at {a} and facing {b}, in which direction is {c}: in front, behind, left or right?
  / picture yourself where {a} is, gazing at {b}; {c} lies: in front, behind, left or right?
nearer object: which is closer to {a}, {b} or {c}? | is {b} or {c} closer to {a}?
  / of {b} and {c}, which has the shorter way to {a}?
nearer to us: is {b} closer to us than {c}? | are we closer to {b} than to {c}?
  / does {b} lie at less of a distance from our automobile than {c}?
distance: how many metres away is {b}? | how far is {b} from us in metres?
  / state the metres that separate {b} from our automobile
situated direction: on which side of me is {b}: in front, behind, left or right?
  | where is {b} from here: in front, behind, left or right?
  / towards which flank of mine lies {b}: in front, behind, left or right?
situated distance: how many metres is it from me to {b}? | how far is {b} from me in metres?
  / state the metres that separate me and {b}
situated nearer: which is closer to me, {b} or {c}? | am I closer to {b} or to {c}?
  / of {b} and {c}, which has the shorter way to my feet?
situated counting: how many {many} are within {n} metres of me?
  | count the {many} less than {n} metres from me
  / what is the number of {many} inside a circle of {n} metres round my feet?
appears: which does the front camera see first, {b} or {c}?
  | which comes into view of the front camera first, {b} or {c}?
  / of {b} and {c}, which enters the forward picture earlier?
leaves: which leaves the view of the front camera first, {b} or {c}?
  | which does the front camera lose first, {b} or {c}?
  / of {b} and {c}, which quits the forward picture earlier?
""")
"""Questions by kind: `{a}`, `{b}`, `{c}` definite noun phrases (`{a}` indefinite of `existence`)."""

DIRECTIONS = {"ahead": "in front", "behind": "behind", "left": "left", "right": "right"}
"""The answer to a direction by the quarter of the view."""
