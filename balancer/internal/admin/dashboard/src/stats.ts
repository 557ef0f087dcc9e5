// From counters to rates: what happened between two looks.
import type { Stats } from "./api";

export interface Point { at: number; rate: number; errors: number; inFlight: number; p50: number | null; p95: number | null; p99: number | null }

interface Counted { requests: number; errors: number; in_flight: number; buckets: number[] }

const kept = 300; // of points: ten minutes
const least = 1000; // milliseconds between two looks: what happens in less says little of a second

// quantile estimates a quantile in seconds, within its bucket in proportion; null when nothing was counted.
export function quantile(buckets: number[], bounds: number[], q: number): number | null {
  const total = buckets.reduce((a, b) => a + b, 0);
  if (total === 0) return null;
  const rank = q * total;
  let seen = 0;
  for (let i = 0; i < bounds.length; i++) {
    const n = buckets[i] ?? 0;
    if (n > 0 && seen + n >= rank) {
      const from = i > 0 ? bounds[i - 1]! : 0;
      return from + (bounds[i]! - from) * (rank - seen) / n;
    }
    seen += n;
  }
  return bounds[bounds.length - 1] ?? null;
}

// History is what is known of everything that was looked at, by name; the total has the name "".
export class History {
  private last = new Map<string, { at: number; counted: Counted }>();
  private points = new Map<string, Point[]>();

  constructor(private readonly most = kept) {}

  add(name: string, at: number, counted: Counted, bounds: number[]): void {
    const was = this.last.get(name);
    const anew = !was || counted.requests < was.counted.requests; // the first look, or the daemon has started anew
    if (!anew && at - was.at < least) return;
    this.last.set(name, { at, counted });
    if (anew) return;
    const seconds = (at - was.at) / 1000;
    const buckets = counted.buckets.map((n, i) => n - (was.counted.buckets[i] ?? 0));
    const requests = counted.requests - was.counted.requests;
    const list = this.points.get(name) ?? [];
    list.push({
      at, rate: requests / seconds, errors: requests > 0 ? (counted.errors - was.counted.errors) / requests : 0, inFlight: counted.in_flight,
      p50: quantile(buckets, bounds, 0.5), p95: quantile(buckets, bounds, 0.95), p99: quantile(buckets, bounds, 0.99),
    });
    if (list.length > this.most) list.shift();
    this.points.set(name, list);
  }

  // stats adds all of an answer, but for one service: that whose page adds its figures itself, from the answer it shows.
  stats(s: Stats, but: string): void {
    const at = Date.parse(s.at);
    this.add("", at, s.total, s.bounds);
    for (const v of s.services) if (v.name !== but) this.add(v.name!, at, v, s.bounds);
  }

  of(name: string): Point[] { return this.points.get(name) ?? []; }
  now(name: string): Point | undefined { return this.of(name).at(-1); }
}

export function rate(v: number | undefined): string {
  if (v === undefined) return "–";
  return v >= 100 ? Math.round(v).toLocaleString("en") : v >= 10 ? v.toFixed(1) : v.toFixed(2);
}

export function percent(v: number | undefined): string {
  if (v === undefined) return "–";
  return v === 0 ? "0 %" : v < 0.001 ? "< 0.1 %" : (100 * v).toFixed(1) + " %";
}

export function time(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  if (seconds < 0.9995) return (seconds * 1e3).toPrecision(3).replace(/\.?0+$/, (m) => m.startsWith(".") ? "" : m) + " ms";
  return seconds < 100 ? seconds.toPrecision(3) + " s" : Math.round(seconds) + " s";
}

// ago writes how long ago something was.
export function ago(at: string | undefined): string {
  if (!at) return "";
  const s = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  if (s < 60) return Math.floor(s) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h";
  return Math.floor(s / 86400) + " d";
}

export function clock(at: string | number): string {
  return new Date(at).toLocaleTimeString("en-GB");
}
