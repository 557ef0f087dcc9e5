// The pages of events, routes and the configuration.
import { get, type Event, type Route, type Routes, type Why } from "./api";
import { el, fill } from "./dom";
import { Grid, pairs, stateBadge } from "./parts";
import { clock, time } from "./stats";

const kinds = ["instance", "routes", "config", "registry", "brake", "panic", "operator"];

// eventLine is an event in a timeline.
export function eventLine(e: Event): HTMLElement {
  return el("li", { class: e.kind },
    el("time", { datetime: e.at, title: e.at }, clock(e.at)),
    el("span", { class: "kind" }, e.kind),
    el("span", { class: "what" },
      e.service !== undefined && e.service !== "" && el("a", { href: "#/services/" + encodeURIComponent(e.service) }, e.instance ? `${e.service} / ${e.instance}` : e.service),
      e.to !== undefined && e.to !== "" && stateBadge(e.to), el("span", {}, e.text)),
    el("span", { class: "note" }, e.revision ? `revision ${e.revision}` : ""));
}

// Events is the timeline: the latest first.
export class Events {
  readonly node: HTMLElement;
  private readonly list = el("ol", { class: "timeline", role: "log", "aria-label": "Events" });
  private kind = "";
  private text = "";

  constructor(private readonly events: () => Event[]) {
    const choose = el("select", { "aria-label": "Kind of events", onchange: () => { this.kind = choose.value; this.draw(); } },
      el("option", { value: "" }, "All kinds"), ...kinds.map((k) => el("option", { value: k }, k)));
    const search = el("input", { type: "search", placeholder: "Filter  /", "aria-label": "Filter events", class: "filter", oninput: () => { this.text = search.value.toLowerCase(); this.draw(); } });
    this.node = el("section", { class: "card" }, el("header", {}, el("h2", {}, "Events"), el("span", { class: "tools" }, choose, search)), this.list);
    this.draw();
  }

  draw(): void {
    const shown = this.events().filter((e) => (this.kind === "" || e.kind === this.kind) &&
      (this.text === "" || [e.service, e.instance, e.address, e.text, e.to].some((t) => t?.toLowerCase().includes(this.text)))).slice(-400).reverse();
    fill(this.list, ...shown.map(eventLine),
      shown.length === 0 && el("li", { class: "empty" }, "Nothing has happened, as far as this shows."));
  }
}

// RoutesPage lists the routes, and tells where a request would go.
export class RoutesPage {
  readonly node: HTMLElement;
  private readonly answer = el("div", { class: "answer", "aria-live": "polite" });
  private readonly conflicts = el("div");
  private readonly grid = new Grid<Route>("Routes, the first that matches wins", [
    { title: "Route", sort: (r) => r.name, cell: (r) => r.name }, { title: "From", sort: (r) => r.source, cell: (r) => r.source },
    { title: "Host", sort: (r) => r.host ?? "", cell: (r) => r.host ?? "any" }, { title: "Path", sort: (r) => r.path ?? "", cell: (r) => r.path ?? "any" },
    { title: "Service", sort: (r) => r.service, cell: (r) => r.service ? el("a", { href: "#/services/" + encodeURIComponent(r.service) }, r.service) : "" },
    { title: "Priority", numeric: true, sort: (r) => r.priority ?? 0, cell: (r) => String(r.priority ?? 0) }, { title: "Timeout", cell: (r) => r.timeout ?? "" },
  ], "There are no routes.");

  constructor() {
    const method = el("select", { "aria-label": "Method" }, ...["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"].map((m) => el("option", {}, m)));
    const url = el("input", { type: "text", placeholder: "http://shop.example.com/cart/7", "aria-label": "URL", class: "wide filter", spellcheck: "false" });
    const field = el("input", { type: "text", placeholder: "X-Beta: 1", "aria-label": "A header field, if one matters", spellcheck: "false" });
    const form = el("form", { class: "tester", onsubmit: (e: SubmitEvent) => {
      e.preventDefault();
      const q = new URLSearchParams({ method: method.value, url: url.value });
      if (field.value.trim() !== "") q.set("header", field.value);
      get<Why>("/api/v1/why?" + q.toString()).then((w) => fill(this.answer, ...why(w)), (problem: Error) => fill(this.answer, el("p", { class: "problem" }, problem.message)));
    } }, method, url, field, el("button", { type: "submit", class: "primary" }, "Where would it go?"));
    this.node = el("div", {}, el("section", { class: "card" }, el("header", {}, el("h2", {}, "Try a request")), form, this.answer),
      this.conflicts, el("section", { class: "card" }, el("header", {}, el("h2", {}, "Routes")), this.grid.node));
  }

  async update(): Promise<void> {
    const r = await get<Routes>("/api/v1/routes");
    this.grid.set(r.routes);
    fill(this.conflicts, (r.conflicts?.length ?? 0) > 0 && el("section", { class: "card banner warn" }, el("h2", {}, "Routes that never match"),
      ...(r.conflicts ?? []).map((c) => el("p", {}, `${c.loser.name} (${c.loser.source}): ${c.winner.name} (${c.winner.source}) takes all of its requests`))));
  }
}

// atRevision names the revision of a key; nothing where there is none.
function atRevision(n: number | undefined): string { return n ? `, revision ${n}` : ""; }

// why tells where a request would go.
function why(w: Why): Node[] {
  const list: Node[] = [pairs([
    ["Request", `${w.method} ${w.scheme}://${w.host}${w.path}${w.query ?? ""}`],
    ["Route", w.route ? `${w.route.name} (${w.route.source})${w.redirect ? ", a redirect" : ""}${atRevision(w.route.revision)}` : "none"],
    ["Service", w.service], ["Policy", w.policy && w.policy + atRevision(w.policy_revision)],
    ["Answer", w.reason ? el("strong", { class: "problem" }, w.reason) : w.redirect ? "a redirect" : "of one of the instances marked below"],
    ["Table", `generation ${w.table_generation}, revision ${w.table_revision}`],
  ])];
  if (w.candidates) {
    const grid = new Grid<NonNullable<Why["candidates"]>[number]>("Instances", [
      { title: "Instance", cell: (c) => c.id }, { title: "Address", cell: (c) => c.address }, { title: "Chosen among", cell: (c) => c.chosen ? "✓ yes" : "no" },
      { title: "Share", numeric: true, cell: (c) => String(c.share) }, { title: "State", cell: (c) => stateBadge(c.state) }, { title: "Why", cell: (c) => c.reason },
      { title: "Load", numeric: true, cell: (c) => String(c.load) }, { title: "Latency", numeric: true, cell: (c) => time(c.latency) },
      { title: "Revision", numeric: true, cell: (c) => String(c.revision ?? "") },
    ], "It has no instances.");
    grid.set(w.candidates);
    list.push(grid.node);
  }
  if (w.losers && w.losers.length > 0) {
    const more = w.losers_unlisted ?? 0;
    list.push(el("details", {}, el("summary", {}, `${w.losers.length + more} routes that do not get it`),
      el("ul", {}, ...w.losers.map((l) => el("li", {}, `${l.route.name} (${l.route.source}): ${l.why}`)), more > 0 ? el("li", {}, `and ${more} more`) : "")));
  }
  return list;
}

// ConfigPage shows the configuration in effect.
export class ConfigPage {
  readonly node: HTMLElement;
  private readonly text = el("pre", { class: "yaml", tabindex: 0, "aria-label": "Configuration" });
  private readonly path = el("span", { class: "note" });

  constructor() {
    this.node = el("section", { class: "card" }, el("header", {}, el("h2", {}, "Configuration in effect"), this.path), this.text);
  }

  async update(): Promise<void> {
    const c = await get<{ path?: string; yaml: string }>("/api/v1/config");
    fill(this.path, c.path ? `from ${c.path}, with defaults; secrets are hidden` : "defaults and environment; secrets are hidden");
    // Lines are what they are here: the text is the daemon's own.
    if (this.text.textContent !== c.yaml) this.text.textContent = c.yaml;
  }
}

