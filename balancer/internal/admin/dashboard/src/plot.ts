// Plots over time, each with a table of the same figures under it for who wants one.
import uPlot from "uplot";
import { el, fill, svg } from "./dom";
import { clock, type Point } from "./stats";

export interface Series { label: string; colour: string; value: (p: Point) => number | null }

const height = 150, axis = 50; // axis is the width of that of values
const all = new Set<Plot>();
let tables = false; // of the plots of the next page, too

// toggleTables shows the tables of all plots, or hides them if all are shown.
export function toggleTables(): void {
  tables = [...all].some((p) => !p.tabled);
  for (const p of all) p.showTable(tables);
}

export function redraw(): void {
  for (const p of all) p.rebuild();
}

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// top is the least round number that a value fits under, so that the highest line of the grid is the edge of the plot.
function top(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 4, 6, 8, 10].find((n) => n * unit >= value * 0.999)!;
}

// key is the colour of a line.
function key(s: Series): HTMLElement {
  const mark = el("i", { class: "key", "aria-hidden": "true" });
  mark.style.background = `var(${s.colour})`;
  return mark;
}

// Plot draws points as they are set.
export class Plot {
  readonly node: HTMLElement;
  tabled = false;
  private readonly body = el("div", { class: "plot-body" });
  private readonly from = el("span");
  private readonly to = el("span");
  private readonly foot = el("div", { class: "span", "aria-hidden": "true" }, this.from, this.to);
  private readonly table = el("div", { class: "scroll figures", hidden: true, tabindex: 0 });
  private readonly button = el("button", { type: "button", class: "plain", "aria-expanded": "false", title: "Figures (t)", onclick: () => this.showTable(!this.tabled) }, "Table");
  private chart: uPlot | null = null;
  private points: Point[] = [];
  private pointed: Point | undefined; // at by the pointer
  private observer = new ResizeObserver(() => this.resize());

  constructor(title: string, private readonly series: Series[], private readonly format: (v: number) => string, private readonly least = 1) {
    this.table.setAttribute("aria-label", "Figures: " + title);
    const legend = el("div", { class: "legend" }, ...(series.length > 1 ? series.map((s) => el("span", {}, key(s), s.label)) : []));
    this.node = el("section", { class: "card plot", "aria-label": title }, el("header", {}, el("h2", {}, title), legend, this.button), this.body, this.foot, this.table);
    this.observer.observe(this.body);
    all.add(this);
    if (tables) this.showTable(true);
  }

  destroy(): void {
    all.delete(this);
    this.observer.disconnect();
    this.chart?.destroy();
  }

  set(points: Point[]): void {
    this.points = points;
    this.draw();
  }

  rebuild(): void {
    this.chart?.destroy();
    this.chart = null;
    this.draw();
  }

  showTable(show: boolean): void {
    this.tabled = show;
    this.table.hidden = !show;
    this.button.setAttribute("aria-expanded", String(show));
    this.draw();
  }

  // tell says under the plot what is where the pointer is; else, from when to when it reaches.
  private tell(): void {
    this.foot.style.paddingLeft = this.pointed ? "0" : `${axis}px`;
    const p = this.pointed, first = this.points[0], last = this.points.at(-1);
    if (p) {
      fill(this.from, clock(p.at));
      fill(this.to, ...this.series.map((s) => {
        const v = s.value(p);
        return el("span", { class: "value" }, this.series.length > 1 && key(s), v === null ? "–" : this.format(v));
      }));
      return;
    }
    fill(this.from, first ? clock(first.at) : "");
    fill(this.to, last && last !== first ? clock(last.at) : "");
  }

  private draw(): void {
    if (this.tabled) {
      fill(this.table, el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), ...this.series.map((s) => el("th", { scope: "col", class: "n" }, s.label)))),
        el("tbody", {}, ...this.points.slice(-30).reverse().map((p) => el("tr", {}, el("td", {}, clock(p.at)), ...this.series.map((s) => {
          const v = s.value(p);
          return el("td", { class: "n" }, v === null ? "–" : this.format(v));
        }))))));
    }
    this.tell();
    const data: uPlot.AlignedData = [this.points.map((p) => p.at / 1000), ...this.series.map((s) => this.points.map(s.value))];
    if (this.chart) {
      this.chart.setData(data);
      return;
    }
    fill(this.body);
    const text = colour("--muted");
    this.chart = new uPlot({
      width: Math.max(this.body.clientWidth, 200), height, legend: { show: false }, padding: [7, 1, 3, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false }, y: false },
      scales: { y: { range: (_u, _min, most) => [0, top(Math.max(most ?? 0, this.least))] } },
      axes: [
        { show: false },
        {
          stroke: text, font: "11px system-ui, sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, size: axis, gap: 8,
          splits: (u) => [0, u.scales.y!.max! / 2, u.scales.y!.max!], values: (_u, list) => list.map((v) => v === 0 ? "0" : this.format(v)),
        },
      ],
      series: [{}, ...this.series.map((s, i) => ({
        stroke: colour(s.colour), width: 1.5, points: { show: this.points.length === 1 },
        ...(i === 0 && this.series.length === 1 ? { fill: colour(s.colour) + "18" } : {}),
      }))],
      hooks: { setCursor: [(u) => {
        this.pointed = typeof u.cursor.idx === "number" ? this.points[u.cursor.idx] : undefined;
        this.tell();
      }] },
    }, data, this.body);
  }

  private resize(): void {
    if (this.chart && this.body.clientWidth > 0) this.chart.setSize({ width: this.body.clientWidth, height });
  }
}

// sparkline is a small line without axes.
export function sparkline(values: (number | null)[], label: string): SVGElement {
  const width = 88, tall = 22, known = values.filter((v): v is number => v !== null);
  const most = Math.max(...known, 1e-9);
  let path = "", pen = "M";
  values.forEach((v, i) => {
    if (v === null) { pen = "M"; return; }
    const y = (tall - 2 - v / most * (tall - 4)).toFixed(1), x = i * (width - 2) / Math.max(values.length - 1, 1) + 1;
    path += `${pen}${x.toFixed(1)} ${y}`;
    if (pen === "M") path += "h.1"; // a point, if the next one is not known
    pen = "L";
  });
  return svg("svg", { viewBox: `0 0 ${width} ${tall}`, width, height: tall, class: "spark", role: "img", "aria-label": label }, svg("path", { d: path || "M0 0" }));
}
