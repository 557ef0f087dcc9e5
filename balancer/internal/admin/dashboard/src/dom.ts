// Everything that is shown goes through here, as text: nothing from a registry record can become markup.

type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined | ((event: never) => void)>;

// el makes an element. Attributes that begin with "on" are listeners; true is an empty attribute, false and null are none.
export function el<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value as EventListener);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...nodes(children));
  return node;
}

function nodes(children: Child[]): (Node | string)[] {
  const list: (Node | string)[] = [];
  for (const c of children) {
    if (c === null || c === undefined || c === false) continue;
    list.push(c instanceof Node ? c : visible(String(c)));
  }
  return list;
}

// fill replaces what is in a node.
export function fill(node: Element, ...children: Child[]): void {
  node.replaceChildren(...nodes(children));
}

// visible shows characters that steer or hide text as what they are.
export function visible(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu,
    (c) => "⟨U+" + c.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0") + "⟩");
}

const svgNS = "http://www.w3.org/2000/svg";

// svg makes an element of a drawing.
export function svg(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const node = document.createElementNS(svgNS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}
