"""Five more plots, in the form of those in `plots`."""

MORE_PLOTS = {
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
