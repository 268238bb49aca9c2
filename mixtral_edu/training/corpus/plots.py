"""The sentences that stories are made of: openings, plots of four steps each, and endings.

`storytelling` fills the fields in braces: `{hero}`, `{he}`, `{him}`, `{his}`, `{friend}`, `{fhe}`. `{a_hero}` becomes
"a little red fox" and `{an_object}` "a lamp". `{at_place}` is where the hero lives, `{place}` another place. `{broke}`
and `{broken}` fit what the object is made of. A field with a capital (`{He}`, `{Friend}`) starts a sentence. Each use
of a field in `SYNONYMS` draws one of its phrases.
"""

SYNONYMS = {
    "one_day": ["one day", "one morning", "one afternoon", "one sunny day", "early one morning", "one windy day"],
    "then": ["then", "soon", "after a while", "a little later", "just then"],
    "at_last": ["at last", "in the end", "finally"],
    "happy": ["happy", "glad", "very happy"],
    "sad": ["sad", "very sad", "worried"],
}

# The first sentence of every opening names the hero, and the animal with its colour.
OPENINGS = [
    "Once upon a time there was {a_hero} called {hero}.",
    "Once upon a time there was {a_hero} named {hero}.",
    "Once upon a time, {at_place}, there lived {a_hero} called {hero}.",
    "Once there was {a_hero} whose name was {hero}.",
    "Long ago, {a_hero} named {hero} lived {at_place}.",
    "{Hero} was {a_hero} who lived {at_place}.",
    "{A_hero} called {hero} lived in a small house {at_place}.",
    "There was once {a_hero} called {hero} who lived {at_place}.",
    "This is the story of {hero}, {a_hero} who lived {at_place}.",
    "Far away, {at_place}, lived {a_hero} called {hero}.",
    "Do you know {hero}, {the_hero} who lives {at_place}?",
]

HABITS = [
    "{Hero} liked to walk to {place} and look at the clouds.",
    "Every morning {hero} got up early and sang a song.",
    "All the animals {at_place} knew {hero}, because {he} was always kind.",
    "{Hero} liked to play outside, even in the rain.",
    "Every day {hero} went for a walk and said hello to everyone.",
    "{Hero} had a soft bed, a warm fire and a lot of good ideas.",
    "Most of all, {hero} liked long days and good friends.",
    "{Hero} was small, but {he} was not afraid of new things.",
]

OWNS = [
    "{Hero} had {an_object} and took it everywhere.",
    "{Hero} had {an_object} that {he} loved very much.",
    "The best thing {hero} had was {an_object}.",
    "{Hero} was very proud of {his} {object}.",
    "{He} had {an_object}, and {he} looked after the {object} every day.",
]

# The steps of a plot: problem, what the hero tries (long stories only), the talk with the friend, how it is solved.
PLOTS = {
    "loses": {
        "owns": True,
        "problem": [
            "{One_day} the {object} was gone. {Hero} was {sad}.",
            "{One_day} {hero} lost the {object} near {place}.",
            "{One_day} {hero} woke up and could not find {his} {object}.",
            "But {one_day} {hero} looked around, and the {object} was not there.",
        ],
        "try": [
            "{Hero} looked under the bed and behind the door, but there was no {object}.",
            "{He} walked all the way to {place} and looked in the grass. The {object} was not there.",
            "{Hero} looked here, and {hero} looked there. Where was the {object}?",
            "{He} asked the birds, and {he} asked the bees, but nobody had seen the {object}.",
        ],
        "help": [
            '{Then} {hero} met {a_friend} called {friend}. "Have you seen my {object}?" asked {hero}. "No," said '
            '{friend}, "but I will help you look."',
            '"Why are you crying?" asked {friend}, {a_friend}. "I lost my {object}," said {hero}. "Let us look '
            "for "
            'it together," said {friend}.',
            '{A_friend} named {friend} came by. "I lost my {object}," said {hero}. "Then we will find it," said '
            "{friend}.",
        ],
        "solve": [
            '{At_last} {friend} saw the {object} under a tree. "Here it is!" said {friend}, and {hero} laughed.',
            "They looked and looked. {At_last} they found the {object} behind a big stone, and {hero} was {happy}.",
            "{Then} {friend} found the {object} in the tall grass. {Hero} held the {object} and danced.",
        ],
    },
    "finds": {
        "owns": False,
        "problem": [
            "{One_day} {hero} found {an_object} near {place}. But whose {object} was it?",
            "{One_day} {hero} saw something in the grass. It was {an_object}! Who had lost it?",
            "{One_day} {hero} went to {place} and found {an_object} on the path.",
            "{One_day} {an_object} lay in front of the door. {Hero} had never seen the {object} before.",
        ],
        "try": [
            "{Hero} picked up the {object} and looked at it. It was nice, but it was not {his}.",
            '"Somebody must miss this {object}," thought {hero}, and {he} went from house to house.',
            "{Hero} wanted to keep the {object}. But then {he} thought of the one who had lost it.",
            "{He} asked everyone {at_place}, but nobody knew the {object}.",
        ],
        "help": [
            '{Then} {hero} met {a_friend} called {friend}, who looked {sad}. "I lost my {object}," said {friend}. '
            '"Is '
            'this it?" asked {hero}.',
            '{A_friend} named {friend} sat by the road. "Is this your {object}?" asked {hero}. "Yes!" said '
            "{friend}. "
            '"I looked for it all day."',
            '"Hello, {hero}," said {a_friend} called {friend}. "Have you seen {an_object}?" "I have it here," '
            "said "
            "{hero}.",
        ],
        "solve": [
            "{Hero} gave the {object} back, and {friend} was {happy}.",
            '{Friend} took the {object} and gave {hero} a big hug. "Thank you, {hero}," said {friend}.',
            "{Hero} gave {friend} the {object}. Now they could both play with it.",
        ],
    },
    "breaks": {
        "owns": True,
        "problem": [
            "{One_day} the {object} {broke}, and {hero} was {sad}.",
            "{One_day} {hero} fell over a root, and the {object} {broke}.",
            "But {one_day} {hero} was not careful, and the {object} {broke}.",
            "{One_day} the wind took the {object} and threw it against a wall. It {broke}!",
        ],
        "try": [
            "{Hero} looked at the {broken} {object} and did not know what to do.",
            "{He} tried to mend the {object}, but it did not work.",
            "{Hero} tried once, and {hero} tried twice. The {object} was still {broken}.",
            '"Oh no, my {object}!" said {hero}, and a tear ran down {his} nose.',
        ],
        "help": [
            '{Then} {a_friend} called {friend} came by. "Can you mend my {object}?" asked {hero}. "I can try," '
            "said "
            "{friend}.",
            '{Hero} took the {object} to {friend}, {a_friend}. "My {object} is {broken}," said {hero}. "We can mend '
            'it," said {friend}.',
            '"What is wrong?" asked {a_friend} named {friend}. "My {object} {broke}," said {hero}. "Do not be '
            'sad," said {friend}. "I will help you."',
        ],
        "solve": [
            "They worked all day. {At_last} the {object} was as good as new, and {hero} was {happy}.",
            '{Friend} worked slowly and with care. {Then} the {object} was whole again. "Thank you!" said {hero}.',
            "{Hero} held the {object}, and {friend} mended it. Now {hero} liked the {object} even more.",
        ],
    },
    "shares": {
        "owns": True,
        "problem": [
            '{One_day} {a_friend} called {friend} wanted to play with the {object}. "No, it is mine," said {hero}.',
            "{Hero} never let anyone touch the {object}. {One_day} {friend}, {a_friend}, asked for it, and {hero} said "
            "no.",
            "{One_day} {hero} met {friend}, {a_friend} who had no {object}. {Friend} looked {sad}.",
        ],
        "try": [
            "So {hero} played alone. But it was not much fun to be alone with the {object}.",
            "{Hero} sat down with the {object}. It was very quiet, and {hero} felt lonely.",
            "That night {hero} could not sleep. {He} thought of {friend} and of the {object}.",
        ],
        "help": [
            '{Then} {hero} had an idea. "Come here, {friend}," said {hero}. "We can share my {object}."',
            '"I am sorry, {friend}," said {hero}. "Would you like to try my {object}?" "Yes, please!" said {friend}.',
            '{Hero} went to {friend}. "You can have the {object} today," said {hero}, "and I can have it tomorrow."',
        ],
        "solve": [
            "They took turns with the {object}, and it was more fun than before.",
            "{Hero} and {friend} played with the {object} until the sun went down.",
            "{Friend} smiled, and {hero} was {happy}. The {object} was now for both of them.",
        ],
    },
    "gets": {
        "owns": False,
        "problem": [
            "{One_day} {hero} got {an_object} as a present. But {hero} did not know how to use it.",
            'It was a special day, and {hero} got {an_object} from {his} grandmother. "What can I do with it?" {he} '
            "asked.",
            "{One_day} there was a parcel at the door. In it {hero} found {an_object}, a present for {him}.",
        ],
        "try": [
            "{Hero} turned the {object} this way and that way. Nothing happened.",
            "{He} carried the {object} to {place} to show it to everyone.",
            "{Hero} put the {object} on the table and looked at it for a long time.",
        ],
        "help": [
            '{A_friend} called {friend} came to visit. "What a nice {object}!" said {friend}. "I can show you how '
            "it "
            'works, {hero}."',
            '"Can you help me, {friend}?" asked {hero}. {Friend} was {a_friend} who knew all about such things. "Of '
            'course," said {friend}. "I like your {object}."',
            '{Then} {hero} met {friend}, {a_friend}. "Look at my new {object}!" said {hero}. "Let us try it '
            'together," said {friend}.',
        ],
        "solve": [
            "They tried the {object} again and again, and {at_last} {hero} could do it.",
            "{Hero} learned fast. {Then} {he} could use the {object} all alone, and {friend} was {happy} too.",
            "{Friend} showed {hero} what to do with the {object}, and they laughed all afternoon.",
        ],
    },
}

FRIENDSHIPS = [
    "From that day on, {hero} and {friend} were best friends.",
    "After that, {hero} and {friend} met every day.",
    "{Hero} never forgot what {friend} had done.",
    "And so {hero} and {friend} became good friends.",
    '"It is good to have a friend like you," said {hero} to {friend}.',
]

CLOSINGS = [
    "That night {hero} slept well and dreamed of the {object}.",
    "Then {hero} and {friend} went home and ate warm soup.",
    "And they lived happily {at_place}.",
    "And that is the story of {hero} and the {object}.",
    "When the moon came up, {hero} was still smiling.",
]

SCENES = [
    "The sun was warm, and the birds were singing.",
    "A soft wind blew over {place}.",
    "Clouds came up, and a little rain began to fall.",
    "The grass was soft, and the air was fresh.",
    "Everything {at_place} was quiet.",
    "The path was long, but {hero} did not give up.",
]
