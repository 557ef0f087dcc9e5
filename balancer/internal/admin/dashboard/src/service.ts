import { get, getChanged, Refused, type EndpointCounters, type Instance, type Service, type Stats, type Status } from "./api";
import { el, fill } from "./dom";
import { plots } from "./overview";
import { confirm, copyButton, dialog, Grid, number, pairs, quote, since, stateBadge, stateBar } from "./parts";
import { sparkline } from "./plot";
import { ago, History, percent, rate, time } from "./stats";

interface Row { instance: Instance; counters: EndpointCounters | undefined }

const many = 500; // instances: the list of more is asked for every fifth time, or when one of them has changed
const leaseEvery = 5000, mostLeases = 30;

// ServicePage shows one service with its instances.
export class ServicePage {
  readonly node: HTMLElement;
  private readonly numbers = el("div", { class: "numbers" });
  private readonly plots = plots();
  private readonly grid: Grid<Row>;
  private service: Service | undefined;
  private rows: Row[] = [];
  private filter = "";
  private looks = 0;
  private leases = new Map<string, { lease: string; ends: number }>();
  private leasesAt = 0;

  // Of endpoints, whose figures are only asked for while their page is shown, the caller keeps the history.
  constructor(readonly name: string, private readonly history: History, private readonly endpoints: History, private readonly status: () => Status | undefined, private readonly changed: () => void) {
    const now = (r: Row) => this.endpoints.now(r.instance.id);
    this.grid = new Grid<Row>("Instances of " + name, [
      { title: "Instance", class: "name", sort: (r) => r.instance.id, cell: (r) => r.instance.id, under: (r) => r.instance.address },
      { title: "State", class: "most", sort: (r) => r.instance.state, under: (r) => el("span", { title: r.instance.reason }, r.instance.reason),
        cell: (r) => el("span", {}, stateBadge(r.instance.state), r.instance.since && el("span", { class: "note" }, " for " + ago(r.instance.since))) },
      { title: "Weight", numeric: true, sort: (r) => r.instance.weight, cell: (r) => String(r.instance.weight) },
      { title: "Req/s", numeric: true, sort: (r) => now(r)?.rate ?? 0, cell: (r) => rate(now(r)?.rate) },
      { title: "Errors", numeric: true, sort: (r) => now(r)?.errors ?? 0, cell: (r) => percent(now(r)?.errors) },
      { title: "p50", numeric: true, sort: (r) => now(r)?.p50 ?? 0, cell: (r) => time(now(r)?.p50) },
      { title: "p99", numeric: true, sort: (r) => now(r)?.p99 ?? 0, cell: (r) => time(now(r)?.p99) },
      { title: "p95 of late", cell: (r) => sparkline(this.endpoints.of(r.instance.id).map((p) => p.p95), "p95 of late") as unknown as Node },
      { title: "In flight", numeric: true, sort: (r) => r.counters?.in_flight ?? 0, cell: (r) => String(r.counters?.in_flight ?? 0) },
      { title: "Lease left", numeric: true, cell: (r) => this.lease(r.instance) },
      { title: "Check", sort: (r) => r.instance.check ? (r.instance.check.ok ? 1 : 0) : 2, cell: (r) => check(r.instance), under: (r) => checked(r.instance) },
      { title: "Zone, version", sort: (r) => (r.instance.zone ?? "") + (r.instance.version ?? ""), cell: (r) => r.instance.zone ?? "", under: (r) => r.instance.version ?? "" },
    ], "No instance matches.", (r) => void this.details(r.instance), 46);
    const search = el("input", { type: "search", placeholder: "Filter  /", "aria-label": "Filter instances", class: "filter", oninput: () => { this.filter = search.value.toLowerCase(); this.list(); } });
    this.node = el("div", {}, el("p", { class: "crumbs" }, el("a", { href: "#/" }, "Services"), " / ", name), this.numbers,
      el("div", { class: "plots" }, ...this.plots.map((p) => p.node)),
      el("section", { class: "card" }, el("header", {}, el("h2", {}, "Instances"), search), this.grid.node));
  }

  // heard says that something has happened to the service.
  heard(): void { this.looks = 0; }

  async update(): Promise<void> {
    const path = encodeURIComponent(this.name);
    let stats: Stats;
    try {
      const list = !this.service || this.service.instances.length <= many || this.looks % 5 === 0;
      [stats, this.service] = await Promise.all([get<Stats>("/api/v1/stats?service=" + path), list ? getChanged<Service>("/api/v1/services/" + path) : this.service!]);
      this.looks++;
    } catch (e) {
      if (e instanceof Refused && e.status === 404) { fill(this.numbers, el("p", {}, "This service is not known any more.")); this.rows = []; this.list(); return; }
      throw e;
    }
    const service = this.service, all = stats.services[0], at = Date.parse(stats.at), counters = new Map<string, EndpointCounters>();
    if (all) this.history.add(this.name, at, all, stats.bounds);
    let busy = 0; // attempts in flight
    for (const e of stats.endpoints ?? []) {
      counters.set(e.id, e);
      busy += e.in_flight;
      if ((stats.endpoints?.length ?? 0) <= 1000 || e.requests > 0) this.endpoints.add(e.id, at, e, stats.bounds);
    }
    this.rows = service.instances.map((instance) => ({ instance, counters: counters.get(instance.id) }));
    const counts = new Map<string, number>();
    for (const i of service.instances) counts.set(i.state, (counts.get(i.state) ?? 0) + 1);
    const now = this.history.now(this.name);
    const bar = el("div", { class: "number" }, el("span", { class: "label" }, "Instances ready"), el("strong", {}, `${counts.get("ready") ?? 0} of ${service.instances.length}`), stateBar(counts));
    fill(this.numbers, number("Requests/s", rate(now?.rate)), number("Errors", percent(now?.errors), "", (now?.errors ?? 0) > 0.01),
      number("p50", time(now?.p50)), number("p95", time(now?.p95)), number("p99", time(now?.p99)),
      number("In flight", String(busy), (all?.in_flight ?? 0) > busy ? `${all!.in_flight - busy} more not at an instance` : ""), bar,
      number("Policy", service.policy || "–"));
    for (const p of this.plots) p.set(this.history.of(this.name));
    this.list();
    void this.askLeases();
  }

  // lease is what was left of a lease when it was asked for, less what has passed.
  private lease(i: Instance): Node | string {
    if (!i.lease) return el("span", { class: "note" }, i.static ? "file" : "none");
    const known = this.leases.get(i.id);
    return known?.lease === i.lease ? `${Math.max(0, Math.round((known.ends - Date.now()) / 1000))} s` : "…";
  }

  // askLeases asks for the leases of the rows in sight, two at a time: each is a question to etcd.
  private async askLeases(): Promise<void> {
    if (Date.now() - this.leasesAt < leaseEvery || !this.status()?.registry?.connected) return;
    this.leasesAt = Date.now();
    const ask = this.grid.inSight().map((r) => r.instance).filter((i) => i.lease).slice(0, mostLeases);
    const some = async () => {
      for (let i = ask.shift(); i; i = ask.shift()) {
        const one = await get<Instance>(this.path(i)).catch(() => undefined);
        if (one?.lease && one.lease_left !== undefined) this.leases.set(i.id, { lease: one.lease, ends: Date.now() + 1000 * one.lease_left });
      }
    };
    await Promise.all([some(), some()]);
    this.list();
  }

  private path(i: Instance): string { return `/api/v1/services/${encodeURIComponent(this.name)}/instances/${encodeURIComponent(i.id)}`; }

  private list(): void {
    const f = this.filter;
    this.grid.set(f === "" ? this.rows : this.rows.filter(({ instance: i }) =>
      [i.id, i.address, i.state, i.reason, i.zone ?? "", i.version ?? ""].some((t) => t.toLowerCase().includes(f))));
  }

  // details shows everything about an instance, and what can be done with it.
  private async details(i: Instance): Promise<void> {
    const one = await get<Instance>(this.path(i)).catch(() => i);
    const metadata = Object.entries(one.metadata ?? {}).map(([k, v]) => el("div", {}, `${k}: ${v}`));
    const box = dialog(`${this.name} / ${one.id}`, pairs([
      ["Address", one.address], ["State", stateBadge(one.state)], ["Why", one.reason], ["For", since(one.since)],
      ["Until", one.until ? `in ${time(Math.max(0, (Date.parse(one.until) - Date.now()) / 1000))}` : null], ["Weight", String(one.weight)], ["In flight", String(one.in_flight)],
      ["Mean latency", time(one.latency)], ["Last check", el("span", {}, check(one), " ", el("span", { class: "note" }, checked(one)))], ["Zone", one.zone], ["Version", one.version],
      ["Metadata", metadata.length > 0 && el("div", {}, ...metadata)], ["Key", one.key && el("code", {}, one.key)], ["Revision", one.revision ? String(one.revision) : null],
      ["Lease", one.lease && `${one.lease}${one.lease_left !== undefined ? `, ${Math.round(one.lease_left)} s left` : ""}`], ["Incarnation", one.incarnation],
      ["Source", one.static ? "configuration file" : null],
    ]), el("footer", {},
      el("button", { type: "button", onclick: () => { box.close(); this.confirm(one, "drain", { drain: true }); } }, "Drain…"),
      el("button", { type: "button", onclick: () => { box.close(); this.confirm(one, "undrain", { drain: false }); } }, "Undrain…"),
      el("button", { type: "button", onclick: () => { box.close(); this.weigh(one); } }, "Weight…")));
  }

  private weigh(i: Instance): void {
    const input = el("input", { type: "number", min: 0, max: 10000, value: i.weight, "aria-label": "Weight" });
    const box = dialog("Weight of " + i.id, el("p", {}, "100 is what instances have that do not say otherwise; 0 takes nothing new."), input, el("footer", {},
      el("button", { type: "button", class: "primary", onclick: () => { box.close(); this.confirm(i, `weight ${input.value}`, { weight: Number(input.value) }); } }, "Next"),
      el("button", { type: "button", onclick: () => { box.close(); this.confirm(i, "its own weight", { weight: null }); } }, "Its own")));
    input.focus();
  }

  private confirm(i: Instance, what: string, body: { drain?: boolean; weight?: number | null }): void {
    confirm(`${what} ${this.name} / ${i.id}?`,
      body.drain === true ? "It keeps what it has and gets nothing new, from every balancer, until it is undrained." :
        body.drain === false ? "It gets requests again, as it says itself." : "Every balancer gives it this share of the traffic.",
      "PATCH", this.path(i), body, () => { this.heard(); this.changed(); }, copyButton("Copy as etcdctl", () => this.etcdctl(i.id, body)));
  }

  // etcdctl is the line that writes the same into the policy of the service, as it is now.
  private async etcdctl(id: string, body: { drain?: boolean; weight?: number | null }): Promise<string> {
    interface Policy { overrides?: Record<string, { drain?: boolean; weight?: number }> }
    const policy = await get<Policy>(`/api/v1/services/${encodeURIComponent(this.name)}/policy`).catch((e) => {
      if (e instanceof Refused && e.status === 404) return {} as Policy; // else the line would leave out what it does not know
      throw e;
    });
    const word = { ...policy.overrides?.[id] };
    if (body.drain === true) word.drain = true;
    if (body.drain === false) delete word.drain;
    if (typeof body.weight === "number") word.weight = body.weight;
    if (body.weight === null) delete word.weight;
    const overrides = { ...policy.overrides, [id]: word };
    if (Object.keys(word).length === 0) delete overrides[id];
    const value = { ...policy, overrides };
    return `etcdctl put ${this.status()?.registry?.prefix ?? "/rota"}/policies/${this.name} ${quote(JSON.stringify(value))}`;
  }

  destroy(): void { for (const p of this.plots) p.destroy(); }
}

// check is the outcome of the last one, checked its time.
function check(i: Instance): HTMLElement {
  const c = i.check;
  if (!c) return el("span", { class: "note" }, "none");
  return el("span", { class: c.ok ? "" : "problem", title: c.text ?? "" }, c.ok ? `passed in ${time(c.seconds)}` : "failed");
}

function checked(i: Instance): string { return i.check ? `${ago(i.check.at)} ago` : ""; }
