// What the admin API answers: docs/openapi.json.

export interface Status {
  version: string; started: string; ready: boolean; reasons?: string[]; engine: string; listeners: string[]; connections: number; serving: number;
  registry?: { connected: boolean; error?: string; revision: number; store_id: number; member?: string; last_sync?: string; prefix: string };
  table_generation: number; services: number; instances: number; routes: number; route_conflicts: number;
  quarantined?: { key: string; reason: string; revision: number; last_good_value_in_use: boolean }[];
  snapshot?: boolean; doubted: number;
  brakes?: { service: string; since: string; lost: number; of: number }[]; // an empty service is all services together
  orphans?: string[]; // keys
  denied?: { service: string; host?: string; path?: string }[];
  panics?: string[];
}
export interface Instance {
  id: string; address: string; state: string; since?: string; reason: string; weight: number; in_flight: number; zone?: string; version?: string;
  metadata?: Record<string, string>; key?: string; static?: boolean; revision?: number; lease?: string; incarnation?: string; until?: string;
  latency?: number; check?: { at: string; ok: boolean; text?: string; seconds: number }; lease_left?: number;
}
export interface Service { name: string; policy: string; eligible: number; in_flight: number; instances: Instance[] }
export interface Counters { name?: string; in_flight: number; requests: number; errors: number; buckets: number[]; sum: number; instances: number; ready: number }
export interface EndpointCounters { service: string; id: string; address: string; in_flight: number; requests: number; errors: number; buckets: number[]; sum: number }
export interface Stats { at: string; bounds: number[]; total: Counters; services: Counters[]; endpoints?: EndpointCounters[] }
export interface Event { id: string; seq: number; at: string; kind: string; service?: string; instance?: string; address?: string; from?: string; to?: string; text: string; revision?: number }
export interface Route { name: string; source: string; host?: string; path?: string; service: string; strip_prefix?: boolean; priority?: number; timeout?: string; revision?: number }
export interface Routes { routes: Route[]; conflicts?: { winner: Route; loser: Route }[] }
export interface Why {
  scheme: string; method: string; host: string; path: string; query?: string; route?: Route; reason?: string; redirect?: boolean; losers?: { route: Route; why: string }[]; losers_unlisted?: number;
  service?: string; policy?: string; policy_revision?: number; candidates?: (Instance & { chosen: boolean; share: number; load: number })[]; table_generation: number; table_revision: number;
}

const tokenKey = "rota-token"; // for as long as the tab is open

// NeedToken says that the API asks for a token, or for another one.
export class NeedToken extends Error {}

// Refused is an answer that says what was wrong.
export class Refused extends Error {
  constructor(readonly status: number, message: string) { super(message); }
}

export function setToken(token: string): void {
  sessionStorage.setItem(tokenKey, token);
}

export function hasToken(): boolean { return sessionStorage.getItem(tokenKey) !== null; }

function headers(more: Record<string, string> = {}): Record<string, string> {
  const token = sessionStorage.getItem(tokenKey);
  return token ? { ...more, Authorization: "Bearer " + token } : more;
}

async function ask(path: string, init: RequestInit): Promise<Response> {
  const response = await fetch(path, { ...init, cache: "no-store" });
  if (response.status === 401) throw new NeedToken();
  if (!response.ok && response.status !== 304) {
    const problem = await response.json().catch(() => ({})) as { detail?: string };
    throw new Refused(response.status, problem.detail ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

export async function get<T>(path: string): Promise<T> {
  const response = await ask(path, { headers: headers(), signal: AbortSignal.timeout(10_000) });
  return await response.json() as T;
}

const known = new Map<string, { tag: string; value: unknown }>();

// getChanged is get, but what has not changed since the last time is neither sent nor read again: the same value is returned.
export async function getChanged<T>(path: string): Promise<T> {
  const was = known.get(path);
  const response = await ask(path, { headers: headers(was ? { "If-None-Match": was.tag } : {}), signal: AbortSignal.timeout(10_000) });
  if (response.status === 304 && was) return was.value as T;
  const value = await response.json() as T, tag = response.headers.get("ETag");
  known.clear(); // one page is shown at a time
  if (tag) known.set(path, { tag, value });
  return value;
}

export async function send(method: string, path: string, body?: unknown): Promise<void> {
  await ask(path, {
    method, headers: headers({ "Content-Type": "application/json" }), body: body === undefined ? null : JSON.stringify(body), signal: AbortSignal.timeout(10_000),
  });
}

// follow reads events as they come, those after the one of that id, until the signal ends it or the stream ends.
export async function follow(since: string, on: (events: Event[]) => void, signal: AbortSignal): Promise<void> {
  const response = await ask("/api/v1/events", { headers: headers({ Accept: "text/event-stream", ...(since ? { "Last-Event-ID": since } : {}) }), signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events: Event[] = [];
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      for (const line of text.slice(0, end).split("\n")) {
        if (line.startsWith("data:")) events.push(JSON.parse(line.slice(5)) as Event);
      }
      text = text.slice(end + 2);
    }
    if (events.length > 0) on(events);
  }
}
