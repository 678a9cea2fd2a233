"""The demo: real tokens of real pictures, pruned and compared, with nothing to download.

`run.run_demo` does the work, `console` prints it, `report` and `sheet` draw it.
"""

OURS, WITHOUT_QUERY, TRIMTOKENATOR, DIVPRUNE, CDPRUNER, RANDOM, UNIFORM = (
    "trimtokenator-lc",
    "no-query",
    "trimtokenator",
    "divprune",
    "cdpruner",
    "random",
    "uniform",
)
#: The methods that can be asked for by name.
METHODS = (OURS, TRIMTOKENATOR, DIVPRUNE, CDPRUNER, RANDOM, UNIFORM)
DEFAULT_QUERY = "espresso"
