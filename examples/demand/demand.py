"""Two weeks ahead for 40 shops in one call: a table comes in, a table with bands comes out."""

from model import DAYS, sales, write

import statestream

AHEAD = 14

table = sales()
day = table.groupby("unique_id").cumcount()
known, came = table[day < DAYS - AHEAD], table[day >= DAYS - AHEAD]
write(known, "models/demand/1")

with statestream.local("models/demand") as client:
    bands = client.forecast("demand", known, h=AHEAD, level=[80, 95], num_samples=200, seed=7)

bands.to_csv("demand.csv", index=False)
print(bands.tail(3).to_string(index=False, float_format="{:.1f}".format))
both = bands.merge(came, on=["unique_id", "ds"])
inside = both["y"].between(both["demand-lo-80"], both["demand-hi-80"]).mean()
print(f"{len(bands)} rows; of the days that came, {inside:.2f} lay in the band of 80 %")
