"""A few prompts of each of the six sets, written for lenscope, which are used where no files are given.

Knows: prompts, and the words that are thought of and not said. Does not know: models, scores.
"""

from lenscope.experiments.jacobian_lens_paper.prompt_sets import AT_LINE_END, BridgeSwap, ThoughtPrompt

# set → prompts, each with its words; a "/" ends the first line of a couplet
_THOUGHTS = {
    "association": (
        ("The candles on the cake were lit, and everyone in the dark room began to sing.", "birthday"),
        ("He checked the sky again, took the washing off the line and closed every window.", "rain"),
        ("She packed two suitcases, looked for her passport and called a taxi to the terminal.", "travel"),
        ("The nurse taped the needle to his arm and hung a red bag on the stand.", "blood"),
        ("They shook hands, signed both copies, and each took one home.", "contract"),
        ("The jury came back after an hour, and nobody would look at the man in the dock.", "guilty"),
        ("He bought a ring, rehearsed one sentence all week, and booked a table for two.", "marriage"),
        ("The fields had cracked, the well gave mud, and the cattle stood at the empty trough.", "drought"),
    ),
    "typo": (
        ("The children went to the libary", "library"),
        ("Please send me your new adress", "address"),
        ("We will see each other tommorow", "tomorrow"),
        ("That was the begining", "beginning"),
        ("I have not recieved", "received"),
        ("The weather was beautifull", "beautiful"),
        ("It is a matter of great importence", "importance"),
        ("They are going to seperate", "separate"),
    ),
    "multihop": (
        ("Fact: The capital of the country where the Eiffel Tower stands is", "France"),
        ("Fact: The currency of the country whose capital is Tokyo is the", "Japan"),
        ("Fact: The language spoken in the country where Berlin lies is", "Germany"),
        ("Fact: The continent of the country where the pyramids of Giza stand is", "Egypt"),
        ("Fact: The colour of the fruit that monkeys are said to like best is", "banana"),
        ("Fact: The number of legs of the animal that spins webs is", "spider"),
        ("Fact: The sound made by the animal that is called man's best friend is a", "dog"),
        ("Fact: The season that follows the coldest season of the year is", "winter"),
    ),
    "multilingual": (
        ("Le contraire de grand est", "French", "opposite", "big", "small"),
        ("Das Gegenteil von heiß ist", "German", "opposite", "hot", "cold"),
        ("El color de la sangre es", "Spanish", "color", "blood", "red"),
        ("Il giorno dopo lunedì è", "Italian", "day", "Monday", "Tuesday"),
        ("La capitale de l'Italie est", "French", "capital", "Italy", "Rome"),
        ("Die Farbe von Gras ist", "German", "color", "grass", "green"),
        ("Lo contrario de viejo es", "Spanish", "opposite", "old", "young"),
        ("O contrário de noite é", "Portuguese", "opposite", "night", "day"),
    ),
    "order-ops": (
        ("(1 + 2) * 3 = ", "3", "multiplication"),
        ("(9 - 5) * 2 = ", "4", "multiplication"),
        ("3 * (2 + 6) = ", "8", "multiplication"),
        ("(8 - 2) / 3 = ", "6", "division"),
        ("10 - (2 + 3) = ", "5", "subtraction"),
        ("(4 + 5) - 2 = ", "9", "subtraction"),
        ("1 + 2 * 3 = ", "6", "addition"),
        ("2 * 4 + 1 = ", "8", "addition"),
    ),
    AT_LINE_END: (
        ("A rhyming couplet:/The stars came out above the quiet bay,/And night had put to sleep the weary ", "day"),
        ("A rhyming couplet:/He shut the door against the winter cold,/And told a tale that never had been ", "told"),
        ("A rhyming couplet:/The old clock struck, the house was dark and still,/A single light burned high upon the ",
         "hill"),
        ("A rhyming couplet:/She sowed her garden early in the spring,/And heard the first small birds begin to ",
         "sing"),
        ("A rhyming couplet:/The ship went out upon the rolling sea,/And no one knew when it would come to ", "be"),
        ("A rhyming couplet:/He counted every coin he had in store,/And then went out to look for one coin ", "more"),
        ("A rhyming couplet:/The king sat down upon his golden chair,/And saw a silver ribbon in her ", "hair"),
        ("A rhyming couplet:/The road was long, the travellers were few,/And every leaf was shining with the ", "dew"),
    ),
}  # fmt: skip
# prompt, bridge, answer, another bridge, the answer that belongs to it
_SWAPS = (
    ("Fact: The capital of the country where the Eiffel Tower stands is", "France", "Paris", "Italy", "Rome"),
    ("Fact: The language spoken in the country where Berlin lies is", "Germany", "German", "Spain", "Spanish"),
    ("Fact: The continent of the country where the pyramids of Giza stand is", "Egypt", "Africa", "China", "Asia"),
    ("Fact: The capital of the country where sushi was invented is", "Japan", "Tokyo", "China", "Beijing"),
    ("Fact: The language spoken in the country whose capital is Rome is", "Italy", "Italian", "France", "French"),
    ("Fact: The number of legs of the animal that spins webs is", "spider", "eight", "ant", "six"),
    ("Fact: The season that follows the coldest season of the year is", "winter", "spring", "summer", "autumn"),
    ("Fact: The capital of the country whose people invented pizza is", "Italy", "Rome", "Greece", "Athens"),
)


def builtin_thoughts() -> list[ThoughtPrompt]:
    """Eight prompts of each set, with the words that are thought of."""
    return [
        ThoughtPrompt(f"{name}/{n}", name, prompt.replace("/", "\n") if name == AT_LINE_END else prompt, tuple(words),
                      name == AT_LINE_END)
        for name, several in _THOUGHTS.items()
        for n, (prompt, *words) in enumerate(several, 1)
    ]  # fmt: skip


def builtin_bridge_swaps() -> list[BridgeSwap]:
    """Eight two-hop prompts, each with another bridge."""
    return [BridgeSwap(f"swap/{n}", "built in", *fields) for n, fields in enumerate(_SWAPS, 1)]
