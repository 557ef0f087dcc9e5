// Plots over time, each with a table of the same figures beside it.
import uPlot from "uplot";
import { el, fill, svg } from "./dom";
import { clock, type Point } from "./stats";

export interface Series { label: string; colour: string; value: (p: Point) => number | null }

// showTables says whether tables stand in place of plots.
let showTables = false;
const all = new Set<Plot>();

export function toggleTables(): void {
  showTables = !showTables;
  for (const p of all) p.draw();
}

export function redraw(): void {
  for (const p of all) p.rebuild();
}

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Plot draws points as they are set.
export class Plot {
  readonly node: HTMLElement;
  private readonly body = el("div", { class: "plot-body" });
  private chart: uPlot | null = null;
  private points: Point[] = [];
  private observer = new ResizeObserver(() => this.resize());

  constructor(title: string, private readonly series: Series[], private readonly format: (v: number) => string, private readonly least = 1) {
    const legend = el("div", { class: "legend" }, ...(series.length > 1 ? series.map((s) => {
      const key = el("i", { "aria-hidden": "true" });
      key.style.background = `var(${s.colour})`;
      return el("span", {}, key, s.label);
    }) : []));
    this.node = el("section", { class: "card plot", "aria-label": title }, el("header", {}, el("h2", {}, title), legend), this.body);
    this.observer.observe(this.body);
    all.add(this);
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

  draw(): void {
    if (showTables) {
      this.chart?.destroy();
      this.chart = null;
      const rows = this.points.slice(-20).reverse();
      fill(this.body, el("div", { class: "scroll" }, el("table", { class: "figures" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), ...this.series.map((s) => el("th", { scope: "col", class: "n" }, s.label)))),
        el("tbody", {}, ...rows.map((p) => el("tr", {}, el("td", {}, clock(p.at)), ...this.series.map((s) => {
          const v = s.value(p);
          return el("td", { class: "n" }, v === null ? "–" : this.format(v));
        })))))));
      return;
    }
    const data: uPlot.AlignedData = [this.points.map((p) => p.at / 1000), ...this.series.map((s) => this.points.map(s.value))];
    if (this.chart) {
      this.chart.setData(data);
      return;
    }
    fill(this.body);
    const grid = { stroke: colour("--line"), width: 1 }, text = colour("--muted"), font = "11px system-ui, sans-serif";
    this.chart = new uPlot({
      width: Math.max(this.body.clientWidth, 200), height: 150, legend: { show: false }, padding: [8, 22, 0, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } }, scales: { y: { range: (_u, _min, max) => [0, max > 0 ? max * 1.15 : this.least] } },
      axes: [
        { stroke: text, font, grid: { show: false }, ticks: { show: false }, size: 24, values: (u, ticks) => ticks.map((t) => clock(t * 1000).slice(0, (u.scales.x!.max! - u.scales.x!.min!) < 300 ? 8 : 5)), space: 80 },
        { stroke: text, font, grid, ticks: { show: false }, size: 58, values: (_u, ticks) => ticks.map((t) => t === 0 ? "0" : this.format(t)), space: 34 },
      ],
      series: [{}, ...this.series.map((s, i) => ({
        stroke: colour(s.colour), width: 1.5, points: { show: false },
        ...(i === 0 && this.series.length === 1 ? { fill: colour(s.colour) + "18" } : {}),
      }))],
    }, data, this.body);
  }

  private resize(): void {
    if (this.chart && this.body.clientWidth > 0) this.chart.setSize({ width: this.body.clientWidth, height: 150 });
  }
}

// sparkline is a small line without axes.
export function sparkline(values: (number | null)[], label: string): SVGElement {
  const width = 96, height = 22, known = values.filter((v): v is number => v !== null);
  const most = Math.max(...known, 1e-9);
  let path = "", pen = "M";
  values.forEach((v, i) => {
    if (v === null) { pen = "M"; return; }
    path += `${pen}${(i * width / Math.max(values.length - 1, 1)).toFixed(1)} ${(height - 2 - v / most * (height - 4)).toFixed(1)}`;
    pen = "L";
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "spark", role: "img", "aria-label": label }, svg("path", { d: path || "M0 0" }));
}
