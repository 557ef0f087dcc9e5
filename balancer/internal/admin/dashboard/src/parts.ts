// Parts of several pages.
import { Refused, hasToken, send } from "./api";
import { el, fill } from "./dom";
import { ago } from "./stats";

// Each state has a word and a shape, so that it can be told without its colour.
const shapes: Record<string, string> = { ready: "●", starting: "◔", draining: "◐", suspect: "◇", ejected: "▲", down: "■", replaced: "○" };

export function stateBadge(state: string): HTMLElement {
  return el("span", { class: "state " + (shapes[state] ? state : "other") }, el("span", { "aria-hidden": "true" }, shapes[state] ?? "○"), " ", state);
}

export const states = Object.keys(shapes);

// bar shows how many are in each state.
export function stateBar(counts: Map<string, number>): HTMLElement {
  const total = [...counts.values()].reduce((a, b) => a + b, 0);
  const text = [...counts].map(([s, n]) => `${n} ${s}`).join(", ") || "none";
  const bar = el("span", { class: "bar", role: "img", "aria-label": text, title: text });
  for (const s of [...states, ...[...counts.keys()].filter((s) => !shapes[s])]) {
    const n = counts.get(s) ?? 0;
    if (n === 0) continue;
    const part = el("i", { class: shapes[s] ? s : "other" });
    part.style.width = `${100 * n / total}%`;
    bar.append(part);
  }
  return bar;
}

export function number(label: string, value: string, note = "", bad = false): HTMLElement {
  return el("div", { class: "number" + (bad ? " bad" : "") }, el("span", { class: "label" }, label), el("strong", {}, value), note !== "" && el("span", { class: "note" }, note));
}

// two is a cell of two lines, the second of which says more about the first.
function two(first: Node | string, second: Node | string): HTMLElement {
  return el("span", { class: "two" }, el("span", {}, first), el("span", { class: "note" }, second));
}

// Column is one of a Grid; what is under a cell is a second line of it.
export interface Column<T> { title: string; numeric?: boolean; class?: string; sort?: (row: T) => number | string; cell: (row: T) => Node | string; under?: (row: T) => Node | string }

// Grid is a table of any length: only the rows that are in sight are there. It is sorted by its headings.
export class Grid<T> {
  readonly node: HTMLElement;
  private rows: T[] = [];
  private sorted = -1;
  private down = false;
  private pressed = false;
  private readonly head = el("tr");
  private readonly body = el("tbody");
  private readonly box: HTMLElement;
  private readonly table: HTMLTableElement;

  constructor(label: string, private readonly columns: Column<T>[], private readonly empty: string, private readonly open?: (row: T) => void,
    private readonly rowHeight = 36) {
    this.table = el("table", { "aria-label": label }, el("thead", {}, this.head), this.body);
    this.box = el("div", { class: "grid scroll", tabindex: 0, role: "region", "aria-label": label, onscroll: () => this.draw() }, this.table);
    this.node = this.box;
    // A row that is pressed stays until it is let go: else there would be no click.
    this.body.addEventListener("pointerdown", () => {
      this.pressed = true;
      const release = new AbortController();
      for (const end of ["pointerup", "pointercancel"]) {
        addEventListener(end, () => { release.abort(); this.pressed = false; setTimeout(() => this.draw()); }, { signal: release.signal });
      }
    });
    this.node.style.setProperty("--row", `${rowHeight}px`);
    this.heads();
  }

  private heads(): void {
    fill(this.head, ...this.columns.map((c, i) => {
      const direction = this.sorted === i ? (this.down ? "descending" : "ascending") : "none";
      const cell = el("th", { scope: "col", class: c.numeric ? "n" : "", "aria-sort": c.sort ? direction : null });
      if (!c.sort) { cell.append(c.title); return cell; }
      cell.append(el("button", { type: "button", onclick: () => {
        this.down = this.sorted === i ? !this.down : !!c.numeric;
        this.sorted = i;
        this.heads();
        this.set(this.rows);
      } }, c.title, this.sorted === i ? (this.down ? " ↓" : " ↑") : ""));
      return cell;
    }));
  }

  // inSight are the rows that are shown.
  inSight(): T[] { return this.rows.slice(...this.range(0)); }

  // range is that of the rows in sight, with some more.
  private range(more: number): [number, number] {
    const from = Math.floor(this.box.scrollTop / this.rowHeight), n = Math.ceil((this.box.clientHeight || 600) / this.rowHeight);
    return [Math.max(0, from - more), Math.min(this.rows.length, from + n + more)];
  }

  set(rows: T[]): void {
    this.rows = rows;
    const by = this.columns[this.sorted]?.sort;
    if (by) {
      this.rows = [...rows].sort((a, b) => {
        const x = by(a), y = by(b);
        return (x < y ? -1 : x > y ? 1 : 0) * (this.down ? -1 : 1);
      });
    }
    this.table.setAttribute("aria-rowcount", String(rows.length + 1));
    this.draw();
  }

  private draw(): void {
    if (this.pressed) return;
    if (this.rows.length === 0) {
      fill(this.body, el("tr", {}, el("td", { colspan: this.columns.length, class: "empty" }, this.empty)));
      return;
    }
    const [from, to] = this.range(10);
    const space = (n: number) => {
      const row = el("tr", { class: "space", "aria-hidden": "true" }, el("td", { colspan: this.columns.length }));
      row.style.height = `${n * this.rowHeight}px`;
      return row;
    };
    const focus = document.activeElement instanceof HTMLElement && this.body.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    fill(this.body, from > 0 && space(from), ...this.rows.slice(from, to).map((row, i) => {
      const line = el("tr", { "aria-rowindex": from + i + 2, class: this.open ? "link" : "" });
      line.append(...this.columns.map((c, k) => {
        const inner = c.cell(row), under = c.under?.(row);
        const cell = el("td", { class: [c.numeric ? "n" : "", c.class ?? ""].join(" ").trim() });
        let main: Node = inner instanceof Node ? inner : el("span", {}, inner);
        if (k === 0 && this.open) {
          main = el("button", { type: "button", class: "plain", "data-key": `${from + i}`, onclick: (e: globalThis.Event) => { e.stopPropagation(); this.open!(row); } }, inner);
        }
        cell.append(under === undefined ? main : two(main, under));
        return cell;
      }));
      if (this.open) line.addEventListener("click", (e) => { if (!(e.target as Element).closest("button")) this.open!(row); });
      return line;
    }), to < this.rows.length && space(this.rows.length - to));
    if (focus !== undefined) this.body.querySelector<HTMLElement>(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
}

// copyButton copies a text, and says so.
export function copyButton(label: string, text: () => Promise<string> | string): HTMLElement {
  const b = el("button", { type: "button", onclick: async () => {
    let said = "cannot copy: mark it by hand";
    try {
      if (await copy(await text(), b)) said = "copied";
    } catch (e) {
      said = e instanceof Error ? e.message : String(e);
    }
    fill(b, said);
    setTimeout(() => fill(b, label), 1500);
  } }, label);
  return b;
}

// copy puts a text on the clipboard. Over plain HTTP from another machine a page has no navigator.clipboard: then it is marked and
// copied as if by hand, in the dialog that near is in, since nothing outside of it can be marked.
async function copy(text: string, near: HTMLElement): Promise<boolean> {
  if (window.isSecureContext && navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = el("textarea", { class: "aside", "aria-hidden": "true", tabindex: -1 });
  area.value = text;
  near.after(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  near.focus();
  return done;
}

// quote writes a text as a word of a shell.
export function quote(text: string): string {
  return "'" + text.replaceAll("'", `'\\''`) + "'";
}

// confirm asks before anything is changed, and shows how the same is done elsewhere.
export function confirm(title: string, what: string, method: string, path: string, body: unknown, done: () => void, ...more: Node[]): void {
  const data = body === undefined ? "" : ` -H 'Content-Type: application/json' -d ${quote(JSON.stringify(body))}`;
  const curl = `curl -X ${method}${data}${hasToken() ? ' -H "Authorization: Bearer $ROTA_ADMIN_TOKEN"' : ""} ${quote(location.origin + path)}`;
  const said = el("p", { class: "problem", role: "alert" });
  let act: HTMLElement;
  let forced = ""; // once the daemon has said that requests would break, and it is asked for again
  const box = dialog(title, el("p", {}, what), el("pre", {}, curl), said,
    el("footer", {}, act = el("button", { type: "button", class: "primary", onclick: async () => {
      try {
        await send(method, path + forced, body);
        box.close();
        done();
      } catch (e) {
        fill(said, e instanceof Error ? e.message : String(e));
        if (e instanceof Refused && e.status === 409) {
          forced = "?force=true";
          fill(act, "Do it anyway");
        }
      }
    } }, "Do it"), copyButton("Copy as curl", () => curl), ...more, el("button", { type: "button", onclick: () => box.close() }, "Cancel")));
}

export function serviceLink(service: string): HTMLElement { return el("a", { href: "#/services/" + encodeURIComponent(service) }, service); }

// braked names whose brake it is: an empty name is all services together.
export function braked(service: string): Node | string { return service === "" ? "all services" : serviceLink(service); }

// releaseButton is for the brake of a service; that of all services ends by itself, and has none.
export function releaseButton(service: string, done: () => void): Node | string {
  return service === "" ? "" : el("button", { type: "button", onclick: () => release(service, done) }, "Release…");
}

// release asks whether the suspects of a service are to be given up.
function release(service: string, done: () => void): void {
  confirm(`Release the brake of ${service}?`, "Instances whose records were lost serve on while they answer. This gives them up at once: for when you know that they are not to serve. " +
    "Those that register again come back.", "POST", `/api/v1/services/${encodeURIComponent(service)}/release`, undefined, done);
}

// dialog shows something above the page until it is closed.
export function dialog(title: string, ...content: Node[]): HTMLDialogElement {
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => box.close() }, "×");
  const box = el("dialog", { "aria-label": title }, el("header", {}, el("h2", {}, title), close), ...content);
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (e) => { if (e.target === box) box.close(); });
  document.body.append(box);
  box.showModal();
  return box;
}

export function pairs(list: [string, Node | string | undefined | null | false][]): HTMLElement {
  const out = el("dl", { class: "pairs" });
  for (const [name, value] of list) {
    if (value) out.append(el("dt", {}, name), el("dd", {}, value));
  }
  return out;
}

export function since(at: string | undefined): string {
  return ago(at);
}
