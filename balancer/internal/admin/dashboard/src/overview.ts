import type { Service, Status } from "./api";
import { el, fill } from "./dom";
import { Grid, number, stateBar } from "./parts";
import { Plot, sparkline } from "./plot";
import { percent, rate, time, type History } from "./stats";

interface Row { name: string; service: Service | undefined }

export class Overview {
  readonly node: HTMLElement;
  private readonly numbers = el("div", { class: "numbers" });
  private readonly plots: Plot[];
  private readonly grid: Grid<Row>;
  private filter = "";

  constructor(private readonly history: History) {
    this.plots = plots();
    this.grid = new Grid<Row>("Services", [
      { title: "Service", sort: (r) => r.name, cell: (r) => r.name },
      { title: "Instances", sort: (r) => r.service?.eligible ?? 0, cell: (r) => this.instances(r) },
      { title: "Requests/s", numeric: true, sort: (r) => history.now(r.name)?.rate ?? 0, cell: (r) => rate(history.now(r.name)?.rate) },
      { title: "Errors", numeric: true, sort: (r) => history.now(r.name)?.errors ?? 0, cell: (r) => percent(history.now(r.name)?.errors) },
      { title: "p50", numeric: true, sort: (r) => history.now(r.name)?.p50 ?? 0, cell: (r) => time(history.now(r.name)?.p50) },
      { title: "p99", numeric: true, sort: (r) => history.now(r.name)?.p99 ?? 0, cell: (r) => time(history.now(r.name)?.p99) },
      { title: "In flight", numeric: true, sort: (r) => r.service?.in_flight ?? 0, cell: (r) => String(r.service?.in_flight ?? 0) },
      { title: "p99 of late", cell: (r) => sparkline(history.of(r.name).slice(-60).map((p) => p.p99), "p99 of late") as unknown as Node },
      { title: "Policy", sort: (r) => r.service?.policy ?? "", cell: (r) => r.service?.policy ?? "" },
    ], "No service is known. Register one, or run: rota dev", (r) => { location.hash = "#/services/" + encodeURIComponent(r.name); });
    const search = el("input", { type: "search", placeholder: "Filter  /", "aria-label": "Filter services", class: "filter", oninput: () => { this.filter = search.value.toLowerCase(); this.list(); } });
    this.node = el("div", {}, this.numbers, el("div", { class: "plots" }, ...this.plots.map((p) => p.node)),
      el("section", { class: "card" }, el("header", {}, el("h2", {}, "Services"), search), this.grid.node));
  }

  private services: Service[] = [];

  private instances(r: Row): Node {
    const counts = new Map<string, number>();
    for (const i of r.service?.instances ?? []) counts.set(i.state, (counts.get(i.state) ?? 0) + 1);
    return el("span", { class: "with-bar" }, stateBar(counts), ` ${counts.get("ready") ?? 0} of ${r.service?.instances.length ?? 0}`);
  }

  set(status: Status, services: Service[]): void {
    this.services = services;
    const now = this.history.now("");
    fill(this.numbers,
      number("Requests/s", rate(now?.rate)),
      number("Errors", percent(now?.errors), "", (now?.errors ?? 0) > 0.01),
      number("p50", time(now?.p50)), number("p95", time(now?.p95)), number("p99", time(now?.p99)),
      number("In flight", String(now?.inFlight ?? status.serving), `${status.connections} connections`),
      number("Instances", String(status.instances), status.doubted > 0 ? `${status.doubted} in doubt` : "all in good condition", status.doubted > 0));
    for (const p of this.plots) p.set(this.history.of(""));
    this.list();
  }

  private list(): void {
    this.grid.set(this.services.filter((s) => s.name.includes(this.filter)).map((s) => ({ name: s.name, service: s })));
  }

  destroy(): void { for (const p of this.plots) p.destroy(); }
}

// plots are those of everything, or of one service.
export function plots(): Plot[] {
  const seconds = (v: number) => time(v);
  return [
    new Plot("Requests a second", [{ label: "requests/s", colour: "--accent", value: (p) => p.rate }], rate),
    new Plot("Share of errors", [{ label: "errors", colour: "--bad", value: (p) => p.errors }], (v) => (100 * v).toFixed(v < 0.01 ? 2 : 1) + " %", 0.01),
    new Plot("Latency", [
      { label: "p50", colour: "--quiet", value: (p) => p.p50 }, { label: "p95", colour: "--accent", value: (p) => p.p95 }, { label: "p99", colour: "--warn", value: (p) => p.p99 },
    ], seconds, 0.001),
    new Plot("In flight", [{ label: "in flight", colour: "--accent", value: (p) => p.inFlight }], (v) => String(Math.round(v))),
  ];
}
