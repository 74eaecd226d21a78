"""Weeks of air arrive one by one; an alert for each that the model did not expect."""

from model import TRAINED, weeks, write

import statestream

write("models/air/1")
dates, ppm, season = weeks()
for week in (1720, 1990, 2260):  # The instrument is off for a week.
    ppm[week] += 4

with statestream.local("models/air") as client, client.session("air", id="mauna-loa") as session:
    session.step({"co2": ppm[:TRAINED], "season": season[:TRAINED]}, score=True)  # What others are compared with.
    for week in range(TRAINED, len(ppm)):
        _, score = session.step({"co2": ppm[week], "season": season[week]}, score=True)
        if score.p_value <= 0.005:  # NaN, of a week that was not measured, is not.
            print(f"{dates[week].date()}: {ppm[week, 0]:.1f} ppm, p = {score.p_value.item():.3f}")
    print(f"{session.position} weeks, {TRAINED} of them known before")
