"""An LSTM of one's own and its scaler: served, stepped with live rows, asked for forecasts with bands."""

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler

import statestream
from statestream_export import State, export

days, ids = pd.date_range("2024-01-01", periods=60), [f"shop-{i}" for i in range(200)]
sales = 50 + 9 * np.sin(np.arange(60) * 0.9 + np.arange(200)[:, None])
past = pd.DataFrame({"unique_id": np.repeat(ids, 60), "ds": np.tile(days, 200), "y": sales.ravel()})
scaler = StandardScaler().fit(past[["y"]].to_numpy())


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(1, 16, batch_first=True), torch.nn.Linear(16, 1)

    def forward(self, y, h, c):
        out, (h, c) = self.lstm(y, (h, c))
        return self.head(out), h, c


states, scalers = {name: State(torch.zeros(1, 1, 16), batch_axis=1) for name in "hc"}, {"y": scaler, "next": scaler}
shown = {"outputs": ["next"], "feedback": {"next": "y"}, "columns": {"y": ["y"]}}
export(
    Net(), torch.tensor(sales[..., None]).float(), path="net.onnx", states=states, time_axis=1, scaler=scalers, **shown
)
with statestream.local("net.onnx") as client:
    with client.sessions("net", ids=ids) as pool:
        for day in days[-7:]:  # live: a row for each shop
            pool.step(past[past.ds == day][["y"]])
    bands = client.forecast("net", past, h=14, bands="conformal", level=80)
print(bands.tail(3), pool.positions.sum())
