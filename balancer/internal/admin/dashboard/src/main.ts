// The dashboard: pages by hash, one loop that asks, and a stream of events.
import { follow, get, hasToken, NeedToken, setToken, type Event, type Stats, type Status } from "./api";
import { el, fill } from "./dom";
import { ConfigPage, Events, RoutesPage } from "./others";
import { Overview } from "./overview";
import { braked, dialog, releaseButton, serviceLink } from "./parts";
import { redraw, toggleTables } from "./plot";
import { ServicePage } from "./service";
import { ago, clock, History } from "./stats";

const every = 2000, slowest = 15_000, keptEvents = 3000;

interface Page { node: HTMLElement; update?: () => Promise<void>; draw?: () => void; destroy?: () => void }

const history = new History();
const endpoints = new Map<string, History>(); // of the services whose pages were shown
let events: Event[] = [];
let status: Status | undefined;
let stats: Stats | undefined;
let page: Page | undefined;
let lastSeen = 0;

const banners = el("div", { class: "banners", "aria-live": "polite" });
const main = el("main", { id: "main", tabindex: -1 });
const link = el("span", { class: "pill" });
const version = el("span", { class: "note version" });
const nav = el("nav", { "aria-label": "Pages" }, ...[["#/", "Overview"], ["#/events", "Events"], ["#/routes", "Routes"], ["#/config", "Configuration"]].map(([href, name]) => el("a", { href: href! }, name!)));
const theme = el("button", { type: "button", class: "plain", "aria-label": "Light or dark", title: "Light or dark (d)", onclick: switchTheme }, "◐");
const help = el("button", { type: "button", class: "plain", "aria-label": "Keys", title: "Keys (?)", onclick: showHelp }, "?");

document.body.append(el("a", { class: "skip", href: "#main" }, "To the content"),
  el("header", { class: "top" }, el("a", { class: "brand", href: "#/" }, "Rota"), nav, el("span", { class: "right" }, version, link, theme, help)), banners, main);

// Light or dark: as the system says, unless it was chosen here.
function setTheme(name: string | null): void {
  if (name === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  redraw();
}
function switchTheme(): void {
  const dark = document.documentElement.dataset.theme === "dark" || !document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches;
  const next = dark ? "light" : "dark";
  localStorage.setItem("rota-theme", next);
  setTheme(next);
}
setTheme(localStorage.getItem("rota-theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// route shows the page that the hash names.
function route(): void {
  page?.destroy?.();
  for (const d of document.querySelectorAll<HTMLDialogElement>("dialog:not(.token)")) d.close(); // it was about another page
  const [, first = "", second = ""] = (location.hash || "#/").split("/");
  let title = "Overview";
  if (first === "services" && second !== "") {
    const name = decodeURIComponent(second);
    let of = endpoints.get(name);
    if (!of) endpoints.set(name, of = new History(60));
    page = new ServicePage(name, history, of, () => status, () => void look());
    title = name;
  } else if (first === "events") { page = new Events(() => events); title = "Events"; }
  else if (first === "routes") { page = new RoutesPage(); title = "Routes"; }
  else if (first === "config") { page = new ConfigPage(); title = "Configuration"; }
  else page = new Overview(history, () => events, () => void look());
  document.title = title + " · Rota";
  fill(main, page!.node);
  show();
  for (const a of nav.querySelectorAll("a")) {
    const here = a.getAttribute("href") === (first === "" || first === "services" ? "#/" : "#/" + first);
    if (here) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  void look();
}
addEventListener("hashchange", route);

// show brings what is known to the page.
function show(): void {
  if (page instanceof Overview && status && stats) page.set(status, stats);
  const s = status;
  if (!s) return;
  fill(version, `${s.version}, up ${ago(s.started)}`);
  const r = s.registry;
  link.className = "pill " + (!r || r.connected ? "good" : "bad");
  fill(link, !r ? "no registry" : r.connected ? `etcd in reach, revision ${r.revision}` : "etcd out of reach");
  link.title = r ? `heard of ${r.last_sync ? ago(r.last_sync) + " ago" : "never"}` : "";
}

function banner(kind: string, title: string, ...rest: (Node | string)[]): HTMLElement {
  return el("div", { class: "banner " + kind, role: kind === "bad" ? "alert" : "status" }, el("strong", {}, title), " ", ...rest);
}

// warn says what is wrong, and what to do.
function warn(gone: string): void {
  const s = status, list: HTMLElement[] = [];
  if (gone !== "") list.push(banner("bad", "The daemon does not answer.", lastSeen ? `Figures are those of ${clock(lastSeen)}. ` : "", gone));
  document.body.classList.toggle("stale", gone !== "");
  if (s && gone === "") {
    if (!s.ready) list.push(banner("bad", "Not ready:", (s.reasons ?? []).join("; ")));
    if (s.registry && !s.registry.connected) list.push(banner("warn", "etcd is out of reach.", `Requests are served by the last table${s.snapshot ? ", from the snapshot" : ""}; changes are not seen. ${s.registry.error ?? ""}`));
    for (const b of s.brakes ?? []) list.push(banner("warn", "Brake:", braked(b.service), ` ${b.service === "" ? "together have" : "has"} lost ${b.lost} of ${b.of} records at once, ${ago(b.since)} ago. Who answers serves on. `,
      releaseButton(b.service, () => void look())));
    const orphans = s.orphans ?? [];
    if (orphans.length > 0) list.push(banner("warn", "Orphans", "are in use, though etcd, another store than before, does not have them: ",
      ...orphans.slice(0, 3).flatMap((key, i) => [i > 0 ? ", " : "", el("code", {}, key)]), orphans.length > 3 ? ` and ${orphans.length - 3} more` : "",
      ". Write them anew, or: ", el("code", {}, "rota orphans drop")));
    for (const p of s.panics ?? []) list.push(banner("bad", "Panic:", serviceLink(p), " has so few instances in a good condition that all of them get requests."));
    if (s.route_conflicts > 0) list.push(banner("warn", `${s.route_conflicts} routes never match.`, el("a", { href: "#/routes" }, "Which")));
    for (const q of (s.quarantined ?? []).slice(0, 3)) list.push(banner("warn", "Set aside:", el("code", {}, q.key), ` ${q.reason}`, q.last_good_value_in_use ? "; its last good value counts on." : ""));
    if ((s.quarantined?.length ?? 0) > 3) list.push(banner("warn", `${s.quarantined!.length - 3} more keys are set aside:`, "rota status"));
    for (const d of (s.denied ?? []).slice(0, 3)) list.push(banner("warn", "Denied:", `${d.service} claims ${d.host ?? ""}${d.path ?? ""}, which no grant covers.`));
  }
  const text = list.map((b) => b.textContent).join("\n");
  if (banners.dataset.text !== text) { // else a reader would be told again
    banners.dataset.text = text;
    fill(banners, ...list);
  }
}

let looking = false, timer = 0, wait = every;

// look asks once, and then again in a while: more slowly while nobody answers.
async function look(): Promise<void> {
  if (looking) return;
  looking = true;
  clearTimeout(timer);
  try {
    [status, stats] = await Promise.all([get<Status>("/api/v1/status"), get<Stats>("/api/v1/stats")]);
    history.stats(stats, page instanceof ServicePage ? page.name : "");
    await page?.update?.();
    lastSeen = Date.now();
    wait = every;
    warn("");
    show();
  } catch (e) {
    if (e instanceof NeedToken) { looking = false; askToken(); return; }
    wait = Math.min(wait * 1.5, slowest);
    warn(`Trying again in ${Math.round(wait / 1000)} s.`);
  }
  looking = false;
  timer = setTimeout(() => void look(), document.hidden ? slowest : wait);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) void look(); });

// askToken asks for the token of the API. It is kept as long as the tab is open. Who closes the dialog can come back to it.
function askToken(): void {
  if (document.querySelector("dialog.token")) return;
  banners.dataset.text = "token";
  fill(banners, banner("warn", "Nothing is shown without a token.", el("button", { type: "button", onclick: askToken }, "Give it…")));
  const input = el("input", { type: "password", "aria-label": "Token", autocomplete: "off", class: "wide" });
  const box = dialog(hasToken() ? "That was not the token" : "This daemon asks for a token", el("form", { onsubmit: (e: SubmitEvent) => {
    e.preventDefault();
    setToken(input.value.trim());
    box.close();
    void look();
    void stream();
  } }, el("p", {}, "It is in admin.token or admin.token_file of its configuration, and is kept until this tab is closed."), input, el("footer", {}, el("button", { type: "submit", class: "primary" }, "Show"))));
  box.classList.add("token");
  input.focus();
}

let streaming = false;

// stream follows the events, and begins again where it ended.
async function stream(): Promise<void> {
  if (streaming) return;
  streaming = true;
  for (;;) {
    try {
      await follow(events.at(-1)?.id ?? "", (list) => {
        if (list[0]!.seq <= (events.at(-1)?.seq ?? 0)) events = []; // another life of the daemon
        events = [...events, ...list].slice(-keptEvents);
        if (page instanceof ServicePage && list.some((e) => e.service === (page as ServicePage).name)) page.heard();
        page?.draw?.();
      }, new AbortController().signal);
    } catch (e) {
      if (e instanceof NeedToken) { streaming = false; return; }
    }
    await new Promise((done) => setTimeout(done, every));
  }
}

const keys: [string, string][] = [["/", "filter"], ["t", "tables under the plots"], ["g o", "overview"], ["g e", "events"], ["g r", "routes"], ["g c", "configuration"], ["d", "light or dark"], ["?", "this"], ["Esc", "close, or leave a field"]];

function showHelp(): void {
  const list = el("dl", { class: "pairs" });
  for (const [key, what] of keys) list.append(el("dt", {}, el("kbd", {}, key)), el("dd", {}, what));
  dialog("Keys", list);
}

let going = false;
addEventListener("keydown", (e) => {
  const field = (e.target as Element).closest("input, select, textarea, dialog");
  if (e.key === "Escape" && field instanceof HTMLElement && !field.closest("dialog")) field.blur();
  if (field || e.ctrlKey || e.metaKey || e.altKey) return;
  if (going) {
    going = false;
    const to = { o: "#/", s: "#/", e: "#/events", r: "#/routes", c: "#/config" }[e.key];
    if (to) { location.hash = to; e.preventDefault(); }
    return;
  }
  switch (e.key) {
    case "g": going = true; setTimeout(() => { going = false; }, 1000); break;
    case "t": toggleTables(); break;
    case "d": switchTheme(); break;
    case "?": showHelp(); break;
    case "/": {
      const field = main.querySelector<HTMLInputElement>("input.filter");
      if (field) { field.focus(); e.preventDefault(); }
      break;
    }
  }
});

route();
void stream();
