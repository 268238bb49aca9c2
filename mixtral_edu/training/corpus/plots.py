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
    "is lost in the dark with": {
        "owns": True,
        "problem": [
            "One evening {hero} stayed out too late with the {object}, and it got dark.",
            "{One_day} {hero} took the {object} for a long walk and lost the way home.",
            "{One_day} there was thick fog near {place}. {Hero} held the {object} and could not see the path.",
        ],
        "try": [
            "{Hero} was a bit afraid. {He} held the {object} close and listened.",
            "{He} went left, and {he} went right, but every tree looked the same.",
            '"Hello?" called {hero}. Nobody answered. {Hero} sat down beside the {object}.',
        ],
        "help": [
            '{Then} {hero} heard a voice. It was {friend}, {a_friend}. "I saw you and your {object} from far away," '
            'said {friend}. "I know the way home."',
            '"Are you lost?" asked {a_friend} called {friend}. "Yes," said {hero}. "I only have my {object}." '
            '"Come '
            'with me," said {friend}.',
            '{A_friend} named {friend} came along the path. "Do not be afraid, {hero}," said {friend}. "Take your '
            '{object} and walk behind me."',
        ],
        "solve": [
            "Step by step they walked through the dark. {At_last} {hero} saw the light of {his} own house.",
            "{Friend} walked in front, and {hero} carried the {object}. {Then} they were home, and {hero} was {happy}.",
            "{Hero} and {friend} sang all the way, and {at_last} {hero} and the {object} were home again.",
        ],
    },
    "saves a friend with": {
        "owns": True,
        "problem": [
            "{One_day} {hero} heard a cry near {place}. {A_friend} called {friend} had fallen into a deep hole.",
            '{One_day} {friend}, {a_friend}, was stuck in the mud. "Help!" called {friend}.',
            "{One_day} it rained and rained. {A_friend} named {friend} sat on a stone in the water and could not get "
            "away.",
        ],
        "try": [
            "{Hero} ran to {friend} as fast as {he} could. {He} pulled, but {he} was not strong enough.",
            '"Wait, {friend}, I am coming!" called {hero}. But how could {he} help?',
            "{Hero} looked around for help. There was nobody, only {hero} and the {object}.",
        ],
        "help": [
            'Then {hero} thought of the {object}. "Hold on to my {object}, {friend}!" said {hero}.',
            '"I have {an_object}," said {hero}. "Take one end of the {object}, and I will pull." "Good idea," '
            "said "
            "{friend}.",
            '{Hero} held out the {object}. "Can you reach it?" asked {hero}. "Yes!" said {friend}.',
        ],
        "solve": [
            "{Hero} pulled at the {object} with all {his} might, and {at_last} {friend} was free.",
            'One, two, three! {Friend} held on to the {object} and came out. "Thank you, {hero}," said {friend}.',
            "Slowly {friend} came closer, and {then} {fhe} was safe. How lucky that {hero} had the {object}!",
        ],
    },
    "wins": {
        "owns": False,
        "problem": [
            "{One_day} there was a big race near {place}. The prize was {an_object}, and {hero} wanted to win.",
            '{One_day} {hero} heard about a race. "Who runs fastest gets {an_object}," said the mayor.',
            '"Who comes first to {place} wins {an_object}!" said a sign. {Hero} read it and was {happy}.',
        ],
        "try": [
            "{Hero} got up early every day and ran up the hill and down again. {He} dreamed of the {object}.",
            "Ready, steady, go! {Hero} ran and ran. {He} thought only of the {object}.",
            "Many animals came to the race. {Hero} was not the fastest, but {he} wanted the {object} very much.",
        ],
        "help": [
            'In the race {a_friend} called {friend} fell down. "Are you hurt, {friend}?" asked {hero}, and {he} '
            "stopped "
            "to help.",
            '{Friend}, {a_friend}, ran beside {hero}. "I am so tired," said {friend}. "Take my hand," said '
            '{hero}. "We '
            'will run together."',
            '"You run well, {hero}," said {a_friend} named {friend}. "Let us run side by side," said {hero}.',
        ],
        "solve": [
            "{Hero} and {friend} came in together, and they both won the {object}.",
            "They were not the first, but everyone clapped. {Hero} got the {object} for being kind.",
            "{At_last} {hero} won the {object}, and {he} shared it with {friend}.",
        ],
    },
    "makes": {
        "owns": False,
        "problem": [
            "{One_day} {hero} wanted to have {an_object}, but there was none to buy near {place}.",
            '{Hero} wished for {an_object}. "I will make {an_object} myself," said {hero}.',
            "{One_day} {hero} had an idea: {he} would make {an_object} with {his} own hands.",
        ],
        "try": [
            "{Hero} worked all morning, but the {object} did not look right.",
            "The first {object} was too big. The second {object} was too small.",
            "{He} looked for all {he} needed near {place}. It was hard work to make {an_object}.",
        ],
        "help": [
            '{A_friend} called {friend} looked over the fence. "Are you making {an_object}, {hero}?" asked '
            '{friend}. "I '
            'would like to help."',
            '"It is too hard," said {hero}. "No, it is not," said {friend}, {a_friend}. "We can make the {object} '
            'together."',
            '{Then} {hero} met {friend}, {a_friend} with clever hands. "How do you make {an_object}?" asked {hero}. '
            '"I '
            'will show you," said {friend}.',
        ],
        "solve": [
            "They worked side by side, and {at_last} the {object} was ready. It was the best {object} of all.",
            "In the evening the {object} was done. {Hero} looked at it and was {happy}.",
            "{Friend} held it, {hero} painted it, and {then} the {object} was ready.",
        ],
    },
    "gives away": {
        "owns": True,
        "problem": [
            "{One_day} {hero} heard that {friend}, {a_friend}, was ill and had to stay in bed.",
            "{One_day} {hero} met {a_friend} called {friend}. It was {friend}'s birthday, but nobody had come.",
            "{One_day} {a_friend} named {friend} moved into the house next door. {Friend} did not know "
            "anyone and was {sad}.",
        ],
        "try": [
            '"What would make {friend} smile?" thought {hero}. {He} looked at the {object} for a long time.',
            "{Hero} wanted to bring something nice. All {he} had was the {object}.",
            "{He} picked some flowers, but the wind blew them away. What else could {he} give?",
        ],
        "help": [
            'So {hero} went to {friend}. "This {object} is for you," said {hero}. "For me?" asked {friend}.',
            '{Hero} knocked at the door. "Hello, {friend}, I have brought you my {object}," said {hero}. "How kind '
            "you "
            'are!" said {friend}.',
            '"Would you like to have my {object}?" asked {hero}. "Oh yes, {hero}!" said {friend}. "But only if '
            "you stay "
            'and play."',
        ],
        "solve": [
            "{Friend} laughed and took the {object}, and {hero} felt warm inside.",
            "They played with the {object} all day, and {friend} was {happy}.",
            "{Friend} put the {object} beside the bed. Now {hero} had no {object}, but {he} had a new friend.",
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
