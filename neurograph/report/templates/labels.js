"use strict";
/** Writes the names of neurons where there is room, the strongest first. */
kit.labels = ({ nodes, columns, column, theme, state, stage, isOn, faded }) => {
  const CROWDED = 12; // names shown in a crowded column before one zooms in
  const labels = { key: "", placed: [] };
  const widths = new Map();

  function textWidth(context, text) {
    if (!widths.has(text)) widths.set(text, context.measureText(text).width);
    return widths.get(text);
  }

  /** A grid of taken rectangles, in pixels that do not change while panning. */
  function crowd() {
    const cells = new Map();
    const each = ([x0, y0, x1, y1], visit) => {
      for (let i = Math.floor(x0 / 48); i <= Math.floor(x1 / 48); i += 1) {
        for (let j = Math.floor(y0 / 48); j <= Math.floor(y1 / 48); j += 1) {
          if (visit(i * 100003 + j)) return true;
        }
      }
      return false;
    };
    return {
      take: (box) => each(box, (cell) => {
        if (!cells.has(cell)) cells.set(cell, []);
        cells.get(cell).push(box);
        return false;
      }),
      free: (box) => !each(box, (cell) => (cells.get(cell) ?? []).some((other) =>
        box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])),
    };
  }

  function labelOrder(k) {
    const { chosen, hover } = state;
    const near = (node) => {
      if (node === hover?.node || node === chosen?.node) return 0;
      if (!chosen) return 2;
      return chosen.kind !== "neuron" || chosen.nodes.get(node.i) === 1 ? 1 : 2;
    };
    // Names in a crowded column cannot all be read: only the strongest, until one zooms in.
    const quiet = (node) => k < 2.4 && column.get(node.layer).crowded
      && node.rank >= CROWDED && near(node) === 2;
    return nodes.filter((node) => isOn(node.i) && (!faded(node.i) || node === hover?.node))
      .filter((node) => !quiet(node))
      .map((node) => ({ node, near: near(node) }))
      .sort((p, q) => p.near - q.near || q.node.strength - p.node.strength
        || p.node.i - q.node.i);
  }

  function boxOf(side, node, k, width) {
    const x = node.x * k;
    const y = node.y * k;
    const r = Math.max(node.size * k, 2.2) + (node.target ? 4 : 0)
      + (node === state.chosen?.node ? 5 : 0);
    if (side === "left") return [x - r - 5 - width, y - 7, x - r - 5, y + 7];
    if (side === "right") return [x + r + 5, y - 7, x + r + 5 + width, y + 7];
    if (side === "above") return [x - width / 2, y - r - 16, x + width / 2, y - r - 3];
    return [x - width / 2, y + r + 3, x + width / 2, y + r + 16];
  }

  /** Where a name may go: edges leave sideways, so inside the graph below comes first. */
  function sidesOf(node, k) {
    const { crowded, step } = column.get(node.layer);
    if (crowded) return ["right", "left", "above", "below"];
    if (!node.ins.length && node.layer === columns[0].layer) return ["left"];
    if (node.layer === columns[columns.length - 1].layer) return ["right"];
    return step * k < 31 ? ["right"] : ["below", "right"]; // too close: whose name would it be?
  }

  function placeLabels(context, k) {
    const taken = crowd();
    for (const node of nodes) {
      const r = Math.max(node.size * k, 2.2);
      if (isOn(node.i)) {
        taken.take([node.x * k - r, node.y * k - r, node.x * k + r, node.y * k + r]);
      }
    }
    labels.placed = [];
    for (const { node, near } of labelOrder(k)) {
      const text = kit.clipped(node.short, near === 0 ? 40 : 24);
      const width = textWidth(context, text);
      const sides = sidesOf(node, k);
      const boxes = sides.map((side) => boxOf(side, node, k, width));
      const found = boxes.findIndex(taken.free);
      if (found < 0 && near > 0) continue;
      const box = boxes[Math.max(0, found)];
      taken.take(box);
      const beside = /left|right/.test(sides[Math.max(0, found)]);
      labels.placed.push({ text, box, near, chip: beside && node.ins.length + node.outs.length });
    }
  }

  function paint(context, now, density) {
    const k = now.a / density;
    context.setTransform(density, 0, 0, density, now.e, now.f);
    context.font = `12px ${theme.font}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.lineJoin = "round";
    const key = `${k}|${state.version}|${state.chosen?.stamp}|${state.hover?.node?.i}`;
    if (key !== labels.key) {
      labels.key = key;
      placeLabels(context, k);
    }
    const [left, top] = [-now.e / density, -now.f / density];
    const [right, bottom] = [left + stage.clientWidth, top + stage.clientHeight];
    for (const { text, box, near, chip } of [...labels.placed].reverse()) {
      if (box[2] < left || box[0] > right || box[3] < top || box[1] > bottom) continue;
      const strong = near === 0 || (near === 1 && state.chosen?.kind !== "neuron");
      context.font = `${strong ? "600 " : ""}12px ${theme.font}`;
      if (chip) { // else the stub of an edge beside a number reads as a minus
        context.fillStyle = theme.surface;
        context.fillRect(box[0] - 4.5, box[1] + 1, box[2] - box[0] + 8, 12);
      }
      context.lineWidth = 3.5;
      context.strokeStyle = theme.surface;
      context.strokeText(text, box[0], (box[1] + box[3]) / 2);
      context.fillStyle = theme.ink;
      context.fillText(text, box[0], (box[1] + box[3]) / 2);
    }
    context.setTransform(now);
  }

  return { paint };
};

/** Writes what each column is above it; a band has `layer`, or `titles` of several layers,
 * and `texts`, from long to short. */
kit.headers = ({ columns }) => {
  const { $, el } = kit;
  const BESIDE = " ↔ ";
  const heads = columns.map((band) => {
    const [name, count] = [el("b"), el("span")];
    const head = el("div", {}, name, count);
    $("columns").append(head);
    return { band, head, name, count, center: (band.left + band.right) / 2, texts: band.texts };
  });
  const titles = (band) => band.titles ?? [band.layer];

  const words = new Map(); // how many columns' paths hold each word
  for (const band of columns) {
    for (const word of new Set(titles(band).flatMap((title) => title.split(".")))) {
      words.set(word, (words.get(word) ?? 0) + 1);
    }
  }

  /** A module's path without what most paths share; numbers, rare words and its end stay. */
  function shortened(layer, most) {
    const parts = layer.split(".");
    while (parts.join(".").length > most) {
      const inner = parts.slice(0, -1).filter((part) => !/^\d+$/.test(part));
      if (!inner.length) break;
      const often = (part) => words.get(part) ?? 0; // 0: begun already
      const commonest = inner.reduce((a, b) => (often(b) > often(a) ? b : a));
      const rare = often(commonest) && often(commonest) < columns.length;
      const begun = rare && commonest.length > 4 ? [commonest.slice(0, 4)] : [];
      parts.splice(parts.indexOf(commonest), 1, ...begun);
    }
    const text = parts.join(".");
    if (text.length <= most) return text;
    const numbers = parts.slice(0, -1).join(".");
    const room = Math.max(2, most - numbers.length - 1);
    return `${numbers}…${text.slice(-room)}`;
  }

  const longest = columns.reduce((most, band) => Math.max(most, titles(band).join(BESIDE).length), 0);
  const room = Math.min(160, 22 + 7.6 * longest); // height of names written downwards

  function move(network) {
    const at = heads.map(({ center }) => network.canvasToDOM({ x: center, y: 0 }).x);
    const gaps = at.slice(1).map((x, k) => x - at[k]);
    const tall = Math.min(...gaps, 260) < 62;
    $("columns").classList.toggle("tall", tall);
    $("columns").style.height = tall ? `${room}px` : "";
    heads.forEach(({ band, head, name, count, texts }, k) => {
      const width = tall ? 20 : Math.min(gaps[k - 1] ?? 260, gaps[k] ?? 260, 260) - 6;
      const letters = Math.max(4, Math.floor((tall ? room - 14 : width - 8) / 7.4));
      const each = Math.floor((letters - 3 * (titles(band).length - 1)) / titles(band).length);
      const text = titles(band).map((title) => shortened(title, Math.max(4, each))).join(BESIDE);
      const below = tall ? "" : texts.find((line) => line.length * 6.1 < width) ?? texts.at(-1);
      if (name.textContent !== text) name.textContent = text;
      if (count.textContent !== below) count.textContent = below;
      head.style.width = `${width}px`;
      head.style.transform = `translateX(${at[k] - width / 2}px)`;
    });
  }

  return { move, room };
};
