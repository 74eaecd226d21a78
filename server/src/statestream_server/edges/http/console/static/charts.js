// Charts as inline SVG: lines, bands and bars. Colours are classes, so that they follow the page's scheme.

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 420, LEFT = 52, BELOW = 22, ABOVE = 8, RIGHT = 8;

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function ticks(low, high) {
  const span = high - low || 1, raw = span / 4, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * unit).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

function frame(label, height, width, x, y, across) {
  const drawn = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const at of ticks(y.low, y.high)) {
    drawn.append(svg("path", { class: "axis", d: `M${LEFT} ${y.of(at)}H${width - RIGHT}` }));
    drawn.append(svg("text", { x: LEFT - 6, y: y.of(at) + 4, "text-anchor": "end" }, short(at)));
  }
  for (const [at, text] of across) {
    drawn.append(svg("text", { x: x.of(at), y: height - 6, "text-anchor": "middle" }, text));
  }
  return drawn;
}

function scale(values, from, to, spare = 0) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    low = Math.min(low, value); high = Math.max(high, value);
  }
  if (low > high) { low = 0; high = 1; }
  if (low === high) { low -= low ? 0.5 : 0; high += low ? 0.5 : 1; }
  const more = (high - low) * spare;
  low -= more; high += more;
  return { low, high, of: (value) => Math.round((from + ((value - low) / (high - low)) * (to - from)) * 10) / 10 };
}

// series: [{label, points: [[x, y]]}]; y may be null, where the line has a gap.
// bands: [{series, points: [[x, low, high]]}], drawn in the colour of their series.
// Texts keep their size where a chart is drawn as wide as it is shown.
export function lines(label, series, bands = [], width = WIDTH, height = 170) {
  const xs = series.flatMap((one) => one.points.map((point) => point[0]));
  const ys = series.flatMap((one) => one.points.map((point) => point[1]));
  for (const band of bands) for (const point of band.points) { xs.push(point[0]); ys.push(point[1], point[2]); }
  const x = scale(xs, LEFT, width - RIGHT), y = scale(ys, height - BELOW, ABOVE, 0.05);
  const whole = ticks(x.low, x.high).filter(Number.isInteger).map((at) => [at, String(at)]);
  const drawn = frame(label, height, width, x, y, whole);
  for (const band of bands) {
    const points = band.points.filter((point) => point[1] !== null && point[2] !== null);
    if (!points.length) continue;
    const up = points.map((point) => `${x.of(point[0])} ${y.of(point[2])}`);
    const down = points.map((point) => `${x.of(point[0])} ${y.of(point[1])}`).reverse();
    drawn.append(svg("path", { class: `band s${band.series % 8}`, d: `M${[...up, ...down].join("L")}Z` }));
  }
  series.forEach((one, index) => {
    let path = "", drawing = false;
    for (const [at, value] of one.points) {
      if (value === null || !Number.isFinite(value)) { drawing = false; continue; }
      path += `${drawing ? "L" : "M"}${x.of(at)} ${y.of(value)}`;
      if (!drawing) path += "h.1"; // A point without neighbours is seen, too.
      drawing = true;
    }
    if (path) drawn.append(svg("path", { class: `line s${(one.colour ?? index) % 8}`, d: path }));
  });
  return figure(drawn, series);
}

// counts: [[text, number]]
export function bars(label, counts, width = WIDTH, height = 150) {
  const most = Math.max(1, ...counts.map((each) => each[1]));
  const y = scale([0, most], height - BELOW, ABOVE);
  const x = { of: (at) => LEFT + ((at + 0.5) / Math.max(1, counts.length)) * (width - LEFT - RIGHT) };
  const every = Math.ceil(counts.length / Math.max(1, Math.floor((width - LEFT) / 58)));
  const drawn = frame(label, height, width, x, y, counts.map((each, at) => [at, at % every ? "" : each[0]]));
  const wide = ((width - LEFT - RIGHT) / Math.max(1, counts.length)) * 0.7;
  counts.forEach(([text, count], at) => {
    const bar = svg("rect", { class: "s0", x: x.of(at) - wide / 2, y: y.of(count), width: wide, height: Math.max(0, y.of(0) - y.of(count)) });
    bar.append(svg("title", {}, `${text}: ${count}`));
    drawn.append(bar);
  });
  const box = document.createElement("div");
  box.append(drawn);
  return box;
}

function figure(drawn, series) {
  const box = document.createElement("div"), legend = document.createElement("ul");
  legend.className = "legend";
  series.forEach((one, index) => {
    const item = document.createElement("li"), last = one.points.at(-1);
    item.append(svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { class: `s${(one.colour ?? index) % 8}`, width: 10, height: 10 })));
    item.append(`${one.label}${last ? ` ${short(last[1])}` : ""}`);
    legend.append(item);
  });
  box.append(drawn, legend);
  return box;
}
