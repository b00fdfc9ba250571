"""Names and words that the questions are made of."""

NAMES = (
    "Ada Amir Anna Ben Carla Chen Dana David Elena Emil Farah Felix Grace Hugo Ines Ivan Jana "
    "Jonas Kavi Lena Liam Maya Mia Nadia Noah Nora Omar Oscar Paula Priya Quinn Rosa Samir Sofia "
    "Tariq Tessa Tomas Uma Victor Yuki"
).split()

# Five to eight letters, lower case, plain ASCII.
WORDS = (
    "amber anchor apple arrow autumn badge banana basket beacon blanket bottle branch bridge "
    "bright bucket butter button cabin camera candle canvas carbon castle cellar cheese cherry "
    "circle clever cloud coast copper corner cotton crayon cradle crystal curtain dancer desert "
    "dinner donkey dragon eagle earth engine fabric falcon family feather fiddle flower forest "
    "fountain friend garden ginger glass goblet grape guitar hammer harbor harvest helmet honey "
    "island jacket jungle kettle kitchen ladder lantern lemon library lizard magnet marble market "
    "meadow melon mirror monkey mountain museum napkin needle number ocean office orange orchard "
    "oyster paper parrot pencil pepper piano picnic pillow pirate planet pocket potato prince "
    "puzzle rabbit rainbow ribbon river rocket saddle sailor salmon school season shadow silver "
    "singer spider spring statue stone summer sunset table temple thunder ticket tiger timber "
    "tomato travel tunnel turtle valley velvet village violin walnut water whistle window winter "
    "wizard yellow zebra"
).split()

ITEMS = (
    "apples badges balloons beads biscuits books bottles bricks buttons candles coins crayons "
    "cupcakes eggs envelopes flowers lemons magnets marbles notebooks oranges pencils plates "
    "postcards roses shells stamps stickers tickets tiles"
).split()

CITIES = (
    "Ankara Bergen Bilbao Bristol Cairo Cork Dakar Delhi Dublin Geneva Ghent Haifa Hanoi Kyoto "
    "Lagos Leeds Lima Lisbon Lyon Malmo Minsk Mumbai Nairobi Oslo Perth Porto Prague Quito Riga "
    "Seville Sofia Tallinn Tunis Turin Vienna Zagreb"
).split()

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January February March April May June July August September October November December"
).split()
