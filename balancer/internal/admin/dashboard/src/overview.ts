import type { Counters, Event, Stats, Status } from "./api";
import { el, fill } from "./dom";
import { eventLine } from "./others";
import { braked, Grid, number, pairs, releaseButton, stateBar } from "./parts";
import { Plot, sparkline } from "./plot";
import { ago, percent, rate, time, type History } from "./stats";

const lately = 8; // events that are shown

// Overview shows all services, how the daemon stands with etcd, and what has happened of late.
export class Overview {
  readonly node: HTMLElement;
  private readonly numbers = el("div", { class: "numbers" });
  private readonly plots = plots();
  private readonly grid: Grid<Counters>;
  private readonly registry = el("div");
  private readonly events = el("ol", { class: "timeline" });
  private services: Counters[] = [];
  private filter = "";

  constructor(private readonly history: History, private readonly heard: () => Event[], private readonly changed: () => void) {
    const now = (c: Counters) => history.now(c.name!);
    this.grid = new Grid<Counters>("Services", [
      { title: "Service", class: "name", sort: (c) => c.name!, cell: (c) => c.name! },
      { title: "Ready", sort: (c) => c.ready, cell: (c) => el("span", { class: "with-bar" }, ready(c), `${c.ready} of ${c.instances}`) },
      { title: "Requests/s", numeric: true, sort: (c) => now(c)?.rate ?? 0, cell: (c) => rate(now(c)?.rate) },
      { title: "Errors", numeric: true, sort: (c) => now(c)?.errors ?? 0, cell: (c) => percent(now(c)?.errors) },
      { title: "p50", numeric: true, sort: (c) => now(c)?.p50 ?? 0, cell: (c) => time(now(c)?.p50) },
      { title: "p99", numeric: true, sort: (c) => now(c)?.p99 ?? 0, cell: (c) => time(now(c)?.p99) },
      { title: "p99 of late", cell: (c) => sparkline(history.of(c.name!).slice(-60).map((p) => p.p99), "p99 of late") as unknown as Node },
      { title: "In flight", numeric: true, sort: (c) => c.in_flight, cell: (c) => String(c.in_flight) },
    ], "No service is known yet: register one, or run rota dev.", (c) => { location.hash = "#/services/" + encodeURIComponent(c.name!); });
    const search = el("input", { type: "search", placeholder: "Filter  /", "aria-label": "Filter services", class: "filter", oninput: () => { this.filter = search.value.toLowerCase(); this.list(); } });
    this.node = el("div", {}, this.numbers, el("div", { class: "plots" }, ...this.plots.map((p) => p.node)),
      el("div", { class: "beside" },
        el("div", {},
          el("section", { class: "card" }, el("header", {}, el("h2", {}, "Services"), search), this.grid.node),
          el("section", { class: "card" }, el("header", {}, el("h2", {}, "Of late"), el("a", { href: "#/events" }, "All events")), this.events)),
        el("section", { class: "card" }, el("header", {}, el("h2", {}, "etcd")), this.registry)));
    this.draw();
  }

  set(status: Status, stats: Stats): void {
    this.services = stats.services;
    const now = this.history.now(""), t = stats.total;
    fill(this.numbers,
      number("Requests/s", rate(now?.rate)),
      number("Errors", percent(now?.errors), "", (now?.errors ?? 0) > 0.01),
      number("p50", time(now?.p50)), number("p95", time(now?.p95)), number("p99", time(now?.p99)),
      number("In flight", String(t.in_flight)),
      number("Instances ready", `${t.ready} of ${t.instances}`),
      number("Client connections", String(status.connections)));
    for (const p of this.plots) p.set(this.history.of(""));
    fill(this.registry, this.link(status));
    this.list();
  }

  // link is how the daemon stands with etcd.
  private link(s: Status): Node {
    const r = s.registry;
    if (!r) return el("p", { class: "note" }, "None: the instances are those of the configuration file.");
    const brakes = (s.brakes ?? []).map((b) => el("div", { class: "brake" },
      el("span", {}, braked(b.service), `: ${b.lost} of ${b.of} lost`), releaseButton(b.service, this.changed)));
    return pairs([
      ["Link", el("span", { class: r.connected ? "state ready" : "problem" }, r.connected ? "● in reach" : "■ out of reach")],
      ["Member", r.member ? el("code", {}, r.member) : "–"],
      ["Heard of", r.last_sync ? `${ago(r.last_sync)} ago` : "never"],
      ["Revision", String(r.revision)],
      ["Keys", el("code", {}, r.prefix + "/")],
      ["Table", `generation ${s.table_generation}${s.snapshot ? ", from the snapshot" : ""}`],
      ["Set aside", keys(s.quarantined) || "no key"],
      ["Brake", brakes.length > 0 ? el("div", {}, ...brakes) : "not engaged"],
      ["Orphans", keys(s.orphans)],
    ]);
  }

  // draw shows the latest events.
  draw(): void {
    const list = this.heard().slice(-lately).reverse();
    fill(this.events, ...list.map((e) => eventLine(e)), list.length === 0 && el("li", { class: "empty" }, "Nothing has happened."));
  }

  private list(): void {
    this.grid.set(this.services.filter((c) => c.name!.includes(this.filter)));
  }

  destroy(): void { for (const p of this.plots) p.destroy(); }
}

function ready(c: Counters): HTMLElement {
  return stateBar(new Map([["ready", c.ready], ["not ready", c.instances - c.ready]]));
}

// keys writes how many they are; nothing where there are none.
function keys(list: unknown[] | undefined): string {
  return !list?.length ? "" : list.length === 1 ? "1 key" : `${list.length} keys`;
}

// plots are those of everything, or of one service.
export function plots(): Plot[] {
  return [
    new Plot("Requests a second", [{ label: "requests/s", colour: "--accent", value: (p) => p.rate }], rate),
    new Plot("Share of errors", [{ label: "errors", colour: "--bad", value: (p) => p.errors }], percent, 0.01),
    new Plot("Latency", [
      { label: "p50", colour: "--quiet", value: (p) => p.p50 }, { label: "p95", colour: "--accent", value: (p) => p.p95 }, { label: "p99", colour: "--warn", value: (p) => p.p99 },
    ], time, 0.001),
    new Plot("In flight", [{ label: "in flight", colour: "--accent", value: (p) => p.inFlight }], (v) => String(Math.round(v)), 2),
  ];
}
