"""Words that appear on the pages. Few, and shared between labels on purpose: the first word of an answer must not give
away the second, or a model could finish the answer without looking at the page again."""


def words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = words(
    "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karen Louis Maria Nadia Oscar Paula Ralph Sonia Tomas "
    "Vera"
)
LAST_NAMES = words(
    "Adler Baker Costa Drake Evans Fisher Grant Hansen Keller Lopez Meyer Novak Olsen Porter Quinn Rossi Stone Turner "
    "Vogel Weber"
)

# a place is a first and a second word
PLACE_FIRST = words("Mill Oak River Lake Hill Park North South West Castle Bridge Garden")
PLACE_SECOND = words("Road Lane Street Field House Gate Square Tower Bay Farm")

ITEM_FIRST = words("Green Black White Sweet Fresh Dark Wild Dried Large Small")
ITEM_SECOND = words("Tea Apple Bread Coffee Pepper Onion Rice Beans Honey Cheese Grapes Olives Salad Soup Cake Juice")

SHOPS = words("Market Bakery Grocery Corner Kitchen Store")

FIELDS = words(
    "Order Invoice Account Customer Driver Contract Ticket Parcel Permit Policy Room Vehicle Member Project Sample "
    "Serial Batch Claim Lease Loan"
)
FIELD_KINDS = {
    "number": words("No Number ID"),
    "code": words("Code Key Ref"),
    "amount": words("Total Fee Price"),
    "name": words("Name Owner Contact"),
    "date": words("Date Start End"),
    "place": words("Site Address Depot"),
}

MONTHS = words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")
COLUMNS = MONTHS + words("Sold Bought Stock Cost Staff Plan")
CHART_TITLES = words("Sales Visitors Output Exports Orders Rainfall")

COLOURS = {
    "red": (176, 32, 32),
    "blue": (28, 60, 160),
    "green": (20, 110, 50),
    "brown": (110, 66, 24),
    "purple": (104, 36, 130),
    "black": (24, 24, 24),
}
