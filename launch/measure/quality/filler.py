"""Filler: everyday sentences from word lists and patterns, in which nothing needs to be remembered.

A seed gives the text; there are some millions of different sentences, and none has a number in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PEOPLE = (
    "the baker", "a young teacher", "the old gardener", "my neighbour", "the ferryman", "a tired nurse", "the librarian",
    "her uncle", "the postman", "a travelling musician", "the carpenter", "our guide", "the night watchman", "a painter",
    "the miller", "his sister", "the tailor", "a retired pilot", "the beekeeper", "two students", "the cook", "a shepherd",
    "the clockmaker", "an engineer", "the station master",
)  # fmt: skip
DEEDS = (
    "carried {thing} {where}", "found {thing} {where}", "looked for {thing} {where}", "repaired {thing} {when}",
    "talked about {thing} {when}", "walked {where} {when}", "waited {where} with {thing}", "sold {thing} {when}",
    "forgot {thing} {where}", "drew a picture of {thing}", "told a long story about {thing}", "cleaned {thing} {when}",
    "sang quietly {where}", "borrowed {thing} from {person}", "showed {thing} to {person}", "had tea with {person} {when}",
    "wrote a letter to {person} {when}", "argued with {person} about {thing}", "met {person} {where}",
    "slept {where} until the rain was over",
)  # fmt: skip
THINGS = (
    "a wooden boat", "the copper kettle", "a basket of apples", "an old map", "the blue umbrella", "a torn coat",
    "a pair of boots", "the broken lantern", "a loaf of bread", "the garden gate", "a box of nails", "a silver spoon",
    "the long ladder", "a violin", "a sack of flour", "the winter curtains", "a jar of honey", "the family photographs",
    "a bicycle", "the kitchen clock", "a woollen scarf", "a bundle of newspapers", "the last candle", "a rusty key",
    "an empty bottle",
)  # fmt: skip
PLACES = (
    "beside the river", "in the market", "behind the church", "at the edge of the forest", "under the bridge",
    "in the attic", "near the harbour", "on the hill", "by the open window", "in the courtyard", "along the dusty road",
    "at the bus stop", "in the back of the shop", "between the orchards", "on the wooden stairs", "outside the village",
    "in the reading room", "at the foot of the tower", "across the meadow", "in the small kitchen",
)  # fmt: skip
TIMES = (
    "in the early morning", "after lunch", "before the storm", "late in the evening", "during the holidays",
    "on a cold afternoon", "when the bells rang", "once a week", "in the first days of spring", "at sunset",
    "while the others slept", "for most of the summer", "after the long journey", "without any hurry", "at the weekend",
)  # fmt: skip
WEATHER = (
    "The wind turned and the leaves began to move.", "It rained softly for the rest of the day.",
    "A thin fog lay over the fields.", "The sun came out and warmed the stones.", "Nobody noticed how quickly time went by.",
    "The street was quiet again.", "Somewhere a dog barked and then stopped.", "The smell of fresh bread filled the house.",
    "Clouds gathered slowly over the valley.", "The snow had melted everywhere but in the shade.",
    "A train went past in the distance.", "The fire in the stove had almost gone out.", "Birds sat in a row on the fence.",
    "The water was clear and very cold.", "All the windows were dark by then.",
)  # fmt: skip
LINKS = ("", "", "", "Later, ", "As usual, ", "To everyone's surprise, ", "That year, ", "Meanwhile, ", "Now and then ")
JOINTS = (", and {person} {deed}", ", but {person} {deed}", ", because {person} {deed}", ", while {person} {deed}", "", "")


def sentences(rng: np.random.Generator) -> Iterator[str]:
    """Yield sentences without end."""

    def one_of(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    def clause(person: str) -> str:
        deed = one_of(DEEDS)
        return f"{person} " + deed.format(
            thing=one_of(THINGS), where=one_of(PLACES), when=one_of(TIMES), person=one_of(PEOPLE)
        )

    while True:
        if rng.random() < 0.15:
            yield one_of(WEATHER)
            continue
        text = one_of(LINKS) + clause(one_of(PEOPLE))
        joint = one_of(JOINTS)
        if joint:
            text += joint.split("{person}")[0] + clause(one_of(PEOPLE))
        yield text[0].upper() + text[1:] + "."
