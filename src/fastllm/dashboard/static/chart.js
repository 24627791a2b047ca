// A line chart in SVG: a few lines over the same seconds, a scale that fits them, and the values under the pointer.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600, HEIGHT = 150, LEFT = 46, BOTTOM = 18, TOP = 8;

export class Chart {
  // lines: [{ name, color, of: sample => number | null }]
  constructor(place, title, lines, words, span) {
    this.lines = lines;
    this.words = words;
    this.span = span;
    this.samples = [];
    this.box = element("div", "chart", place);
    element("h2", "", this.box).textContent = title;
    this.svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, this.box);
    this.svg.setAttribute("aria-label", title);
    this.grid = drawn("g", {}, this.svg);
    this.paths = lines.map(line => drawn("path", { class: `line ${line.color}` }, this.svg));
    this.cursor = drawn("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, this.svg);
    this.values = lines.map((line) => this.legend(line));
    this.svg.addEventListener("pointermove", event => this.point(event));
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.show(); });
    new ResizeObserver(() => this.draw(this.samples)).observe(this.svg);
  }

  legend(line) {
    this.keys ??= element("div", "legend", this.box);
    const key = element("span", "", this.keys);
    element("i", line.color, key);
    key.append(`${line.name} `);
    return element("b", "", key);
  }

  // samples: the newest last, one a second
  draw(samples) {
    this.samples = samples;
    const all = this.lines.map(line => samples.map(line.of));
    const most = niceTop(Math.max(0, ...all.flat().filter(value => value !== null)));
    // Text keeps its shape: the picture is as wide as its place.
    this.width = Math.max(200, this.svg.clientWidth || WIDTH);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.scale(most);
    const y = value => HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP);
    all.forEach((values, i) => this.paths[i].setAttribute("d", path(values, index => this.x(index), y)));
    this.show();
  }

  x(index) {
    const step = (this.width - LEFT) / (this.span - 1);
    return this.width - (this.samples.length - 1 - index) * step;
  }

  scale(most) {
    this.grid.replaceChildren();
    for (const share of [0, 0.5, 1]) {
      const y = HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);
      drawn("line", { class: "grid", x1: LEFT, x2: this.width, y1: y, y2: y }, this.grid);
      drawn("text", { class: "axis", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.grid).textContent =
        share ? this.words(most * share) : "0";
    }
    for (const minutes of [1, 2, 3, 4]) {
      const x = this.width - minutes * 60 * (this.width - LEFT) / (this.span - 1);
      if (x < LEFT) continue;
      drawn("text", { class: "axis", x, y: HEIGHT - 4, "text-anchor": "middle" }, this.grid).textContent = `−${minutes} min`;
    }
  }

  point(event) {
    const bounds = this.svg.getBoundingClientRect();
    const back = (bounds.right - event.clientX) / bounds.width * this.width / ((this.width - LEFT) / (this.span - 1));
    const index = this.samples.length - 1 - Math.round(back);
    this.at = index >= 0 && index < this.samples.length ? index : null;
    this.show();
  }

  show() {
    const index = this.at ?? this.samples.length - 1, sample = this.samples[index];
    this.lines.forEach((line, i) => { this.values[i].textContent = sample ? this.words(line.of(sample)) : "–"; });
    const shown = this.at !== null && this.at !== undefined && sample;
    this.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(index));
  }
}

function path(values, x, y) {
  let text = "", open = false;
  values.forEach((value, index) => {
    if (value === null) { open = false; return; }
    text += `${open ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    open = true;
  });
  return text;
}

function niceTop(value) {
  if (value <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map(step => step * size).find(top => top >= value * 0.999);
}

function drawn(name, attributes, place) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return place.appendChild(made);
}

export function element(name, className, place) {
  const made = document.createElement(name);
  if (className) made.className = className;
  return place.appendChild(made);
}
