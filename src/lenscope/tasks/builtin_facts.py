"""Plain facts written for lenscope: tables of words that relations, two-hop chains and entities are made of.

Knows: countries, cities, things, words, people; sentences that mention something and say nothing of it.
Does not know: models, files, what becomes of the facts (relations.py).
"""

from lenscope.tasks.builtin_questions import CAPITALS, KINDS, OPPOSITES

# An object and its subjects a line, "_" for a blank, "/" between names of the same object.

LANGUAGES = """Spanish: Spain Mexico Argentina Colombia Chile Cuba Venezuela Ecuador
Arabic: Egypt Saudi_Arabia Jordan Syria Lebanon Kuwait Qatar Yemen
French: France Senegal Monaco
German: Germany Austria
English: England Australia Jamaica Ghana
Portuguese: Portugal Brazil Angola
Japanese: Japan
Russian: Russia
Italian: Italy
Greek: Greece
Polish: Poland
Swedish: Sweden
Norwegian: Norway
Danish: Denmark
Hungarian: Hungary
Turkish: Turkey
Korean: South_Korea North_Korea
Vietnamese: Vietnam
Thai: Thailand
Chinese/Mandarin: China
Romanian: Romania
Ukrainian: Ukraine
Persian/Farsi: Iran"""

CONTINENTS = """Europe: France Germany Poland Sweden Portugal Greece Hungary Norway
Asia: Japan China Thailand India Vietnam Nepal Mongolia Iran
Africa: Egypt Kenya Nigeria Ghana Uganda Morocco Angola Senegal
South_America: Peru Chile Bolivia Ecuador Uruguay Colombia Argentina Brazil
North_America: Canada Mexico"""

CURRENCIES = """euro: France Germany Italy Spain Ireland Finland Austria
dollar: Canada Australia New_Zealand Singapore
peso: Mexico Argentina Chile Colombia Cuba
rupee: India Pakistan Nepal
dinar: Iraq Jordan Kuwait Algeria
krone: Norway Denmark
krona: Sweden
shilling: Kenya Uganda
yen: Japan
yuan/renminbi: China
won: South_Korea
ruble/rouble: Russia
real: Brazil
zloty: Poland
rand: South_Africa
franc: Switzerland
lira: Turkey
baht: Thailand
pound: Egypt"""

CITIES = """France: Lyon Marseille Bordeaux Toulouse
Germany: Munich Hamburg Frankfurt Cologne
Italy: Milan Naples Venice Florence
Spain: Barcelona Seville Valencia
Japan: Osaka Kyoto Hiroshima
China: Shanghai Shenzhen Wuhan
India: Mumbai Chennai Kolkata
Canada: Toronto Vancouver Montreal
Australia: Sydney Melbourne Brisbane
Russia: Saint_Petersburg Vladivostok
Brazil: São_Paulo Rio_de_Janeiro
Turkey: Istanbul Izmir"""

LANDMARKS = """France: the_Eiffel_Tower the_Louvre
Italy: the_Colosseum Mount_Vesuvius
China: the_Great_Wall the_Forbidden_City
Greece: the_Acropolis the_Parthenon
Spain: the_Alhambra the_Sagrada_Família
Germany: the_Brandenburg_Gate Neuschwanstein_Castle
Russia: the_Kremlin Lake_Baikal
Egypt: the_Great_Sphinx the_Valley_of_the_Kings
Japan: Mount_Fuji
India: the_Taj_Mahal
Peru: Machu_Picchu
Jordan: Petra
Cambodia: Angkor_Wat
Turkey: the_Hagia_Sophia
Australia: the_Sydney_Opera_House
Tanzania: Mount_Kilimanjaro"""

FOODS = """Italy: pizza lasagna risotto
Japan: sushi ramen
Mexico: tacos burritos guacamole
France: croissants ratatouille
Spain: paella gazpacho
Greece: moussaka feta
Germany: sauerkraut bratwurst
India: samosas naan
China: dim_sum
South_Korea/Korea: kimchi
Thailand: pad_thai
Vietnam: pho
Hungary: goulash
Poland: pierogi
Turkey: baklava
Scotland: haggis"""

COLORS = """yellow: bananas lemons sunflowers
red: tomatoes blood strawberries cherries rubies
green: grass cucumbers spinach emeralds lettuce broccoli
white: snow milk salt swans cotton
black: coal ravens tar
orange: carrots pumpkins
blue: sapphires
brown: chocolate mud
gray/grey: elephants ash"""

PHASES = """solid: iron gold granite wood copper diamond quartz salt
liquid: water milk mercury gasoline vinegar ethanol
gas: oxygen nitrogen hydrogen helium methane neon carbon_dioxide argon"""

WORKPLACES = """hospital/clinic: nurse surgeon
restaurant/kitchen: chef waiter
school/classroom: teacher
court/courtroom/courthouse: judge
farm/field: farmer
library: librarian
laboratory/lab: chemist
church: priest
theater/theatre/stage: actor
ship/boat/sea: sailor
bank: banker
mine: miner
bakery: baker
pharmacy/drugstore: pharmacist
garage/workshop: mechanic
university/college: professor
space: astronaut
bar/pub: bartender
garden: gardener
factory/plant: welder"""

# one pair each, subject first

COMPARATIVES = """big bigger, small smaller, tall taller, short shorter, fast faster, slow slower, old older,
young younger, hot hotter, cold colder, strong stronger, weak weaker, rich richer, poor poorer, long longer,
deep deeper, wide wider, thin thinner, loud louder, quiet quieter, dark darker, light lighter, heavy heavier,
easy easier, happy happier, busy busier, clean cleaner, cheap cheaper, good better, bad worse,
soft softer, hard harder"""

YOUNG = """dog puppy/pup, cat kitten, cow calf, horse foal/colt, sheep lamb, pig piglet, goat kid, deer fawn, bear cub,
lion cub, duck duckling, goose gosling, swan cygnet, frog tadpole, kangaroo joey, chicken chick, whale calf, seal pup,
elephant calf, wolf pup/cub, tiger cub, owl owlet, eagle eaglet, hare leveret"""

# Sentences up to where something is mentioned: what comes before a subject, and nothing that gives its answer away.

ABOUT_PLACES = (
    "Last winter we read a lot about {}",
    "My cousin wrote a letter about {}",
    "There was a short film about {}",
    "She often thinks of {}",
    "The first chapter is about {}",
)
ABOUT_THINGS = (
    "He talked for a while about {}",
    "The book has a page about {}",
    "She asked me a question about {}",
    "Nobody at the table mentioned {}",
    "This morning I was thinking of {}",
)
ABOUT_ONE = (
    "We were waiting for the {}",
    "She drew a picture of the {}",
    "The story is about the {}",
    "Nobody had noticed the {}",
    "This morning I was thinking of the {}",
)
ABOUT_WORDS = (
    "They kept using the word {}",
    "I could not spell the word {}",
    "This chapter is about the word {}",
    "She asked me to read the word {}",
    "He was thinking of the word {}",
)

# name; template for prompts; the verbalisation of a Patchscope; sentences; table
RELATIONS = (
    ("capital", "The capital city of {} is", "The capital city of x", ABOUT_PLACES, CAPITALS),
    ("language", "People in {} speak", "The official language of x", ABOUT_PLACES, LANGUAGES),
    ("continent", "{} is on the continent of", "The continent of x", ABOUT_PLACES, CONTINENTS),
    ("currency", "The official currency of {} is the", "The official currency of x", ABOUT_PLACES, CURRENCIES),
    ("city", "{} is a city in the country of", "The country that has the city of x", ABOUT_PLACES, CITIES),
    ("landmark", "The country where one can visit {} is", "The country where one can visit x", ABOUT_PLACES, LANDMARKS),
    ("food", "The country that {} comes from is", "The country of origin for x", ABOUT_THINGS, FOODS),
    ("opposite", "The opposite of {} is", "The opposite of x", ABOUT_WORDS, OPPOSITES),
    ("comparative", "The comparative form of {} is", "The comparative form of x", ABOUT_WORDS, COMPARATIVES),
    ("kind", "The kind of thing that {} belongs to is", "The general category of x", ABOUT_THINGS, KINDS),
    ("color", "The color of {} is", "The color of x", ABOUT_THINGS, COLORS),
    ("phase", "At room temperature, {} is a", "At room temperature, the phase of matter of x", ABOUT_THINGS, PHASES),
    ("workplace", "The place where a {} works is a", "The usual place of work of a x", ABOUT_ONE, WORKPLACES),
    ("young", "The young of a {} is called a", "The name for the young of a x", ABOUT_ONE, YOUNG),
)

# name of the first relation; the question of the first hop in words; what the second hop may be asked of it
FIRST_HOPS = {
    "city": "the country that has the city of {}",
    "landmark": "the country where one can visit {}",
    "food": "the country that {} comes from",
    "opposite": "the opposite of {}",
}
SECOND_HOPS = {
    "city": ("capital", "language", "continent", "currency"),
    "landmark": ("capital", "language", "continent", "currency"),
    "food": ("capital", "language", "continent", "currency"),
    "opposite": ("comparative",),
}

# name: what it is; well known, and known to few

WELL_KNOWN = """France: country in Western Europe
London: capital city of the United Kingdom
Albert Einstein: German-born physicist who developed the theory of relativity
William Shakespeare: English playwright and poet
Microsoft: American technology company that makes software
Google: American technology company known for its search engine
Coca-Cola: American soft drink
Mount Everest: highest mountain on Earth, in the Himalayas
Amazon River: largest river in South America
Barack Obama: 44th president of the United States
Leonardo da Vinci: Italian painter and scientist of the Renaissance
Paris: capital city of France
Star Wars: American science fiction film series
Harry Potter: series of fantasy novels by J. K. Rowling
The Beatles: English rock band from Liverpool
Isaac Newton: English mathematician and physicist
New York City: largest city in the United States
Tokyo: capital city of Japan
Napoleon Bonaparte: French emperor and general
Mona Lisa: portrait painted by Leonardo da Vinci
Wolfgang Amadeus Mozart: Austrian composer of the classical period
Jupiter: largest planet of the Solar System
Toyota: Japanese maker of cars
Michael Jackson: American singer and dancer
Sahara: desert in northern Africa
Vincent van Gogh: Dutch painter
Titanic: British passenger ship that sank in 1912
Charles Darwin: English naturalist known for the theory of evolution
NASA: American space agency
Buddhism: religion founded in ancient India"""

LITTLE_KNOWN = """Theodor Kaluza: German mathematician and physicist
Barbara Strozzi: Italian singer and composer of the Baroque
Maria Sibylla Merian: German naturalist and scientific illustrator
Lake Ohrid: lake between Albania and North Macedonia
Ljubljanica: river in Slovenia
Kitwe: city in Zambia
Sibiu: city in Romania
Cetinje: town in Montenegro
Oulu: city in northern Finland
Bukavu: city in the Democratic Republic of the Congo
theorbo: plucked string instrument with a long neck
hurdy-gurdy: string instrument played by turning a wheel
quagga: extinct South African zebra
okapi: African mammal related to the giraffe
Lake Balaton: lake in Hungary
Bedřich Smetana: Czech composer
Agnes Pockels: German pioneer of surface chemistry
Hallgrímskirkja: church in Reykjavik, Iceland
Kiribati: island country in the Pacific Ocean
Isaac Albéniz: Spanish pianist and composer
Cimarosa: Italian composer of operas
Tromsø: city in northern Norway
Fredrika Bremer: Swedish writer and feminist
Jan Potocki: Polish nobleman and writer
Niels Henrik Abel: Norwegian mathematician
Antananarivo: capital city of Madagascar
Mary Anning: English fossil collector
numbat: small Australian marsupial that eats termites
Sakurajima: active volcano in Japan
Karl Schwarzschild: German physicist and astronomer"""


def subjects_and_objects(table: str) -> list[tuple[str, tuple[str, ...]]]:
    """(subject, names of its object) of a table: lines of an object and its subjects, or pairs with the subject first.

    >>> subjects_and_objects("gray/grey: elephants coal_ash")
    [('elephants', ('gray', 'grey')), ('coal ash', ('gray', 'grey'))]
    >>> subjects_and_objects("Chile Santiago, Peru Lima")
    [('Chile', ('Santiago',)), ('Peru', ('Lima',))]
    """
    if ":" in table:
        lines = (line.split(":") for line in table.splitlines())
        parts = [(subject, names) for names, subjects in lines for subject in subjects.split()]
    else:
        parts = [(subject, names) for subject, names in (pair.split() for pair in table.split(","))]
    return [(_blank(subject), tuple(_blank(n) for n in names.strip().split("/"))) for subject, names in parts]


def entity_lines(table: str) -> list[tuple[str, str]]:
    """(name, description) of lines of both."""
    parts = (line.split(": ", 1) for line in table.splitlines())
    return [(name, description) for name, description in parts]


def _blank(text: str) -> str:
    return text.replace("_", " ")
