"use strict";
/** Paints the edges of a graph: crisply while they are few, else from a bitmap while it moves.
 *
 * `kinds` are colours with a dash, in shares of its length, or none; an edge has one as `kind`.
 */
kit.edgePainter = ({ nodes, edges, kinds, theme, state, bounds, scaleOf }) => {
  const CRISP_EDGES = 1200; // up to here edges are cheap enough to stroke in every frame
  const BUCKETS = 6; // widths edges are batched into
  const SETTLE_MS = 140; // rest before a moving picture is painted sharply again

  const top = edges.reduce((most, edge) => Math.max(most, edge.strength), 0) || 1;
  for (const edge of edges) {
    edge.bucket = Math.min(BUCKETS - 1, Math.floor(Math.sqrt(edge.strength / top) * BUCKETS));
  }

  function trace(path, edge) {
    const from = nodes[edge.a];
    const to = nodes[edge.b];
    const x0 = from.x + from.size;
    const x1 = to.x - to.size;
    const bend = (x1 - x0) / 2;
    path.moveTo(x0, from.y);
    path.bezierCurveTo(x0 + bend, from.y, x1 - bend, to.y, x1, to.y);
  }

  /** Stroke edges in one go for each kind and width: thousands cost a dozen calls. */
  function stroke(context, chosen, alphaOf, scale) {
    const batches = new Map();
    for (const edge of chosen) {
      const key = edge.bucket * kinds.length + edge.kind;
      if (!batches.has(key)) batches.set(key, new Path2D());
      trace(batches.get(key), edge);
    }
    for (const key of [...batches.keys()].sort((a, b) => a - b)) {
      const level = Math.floor(key / kinds.length) / (BUCKETS - 1);
      const { colour, dash } = kinds[key % kinds.length];
      context.globalAlpha = alphaOf(level);
      context.strokeStyle = theme[colour];
      context.lineWidth = Math.max(0.8 / scale, 1 + 5 * level);
      const unit = Math.max(5 / scale, context.lineWidth * 2);
      context.setLineDash(dash.map((share) => share * unit));
      context.stroke(batches.get(key));
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  function paintBase(context, scale) {
    // The more edges, the fainter the weak ones: a haze that the strong ones stand out of.
    const haze = Math.min(0.5, Math.max(0.05, 0.5 * Math.sqrt(200 / (state.shownEdges + 1))));
    const shown = edges.filter((edge) => state.edgeOn[edge.e]);
    stroke(context, shown, (level) => haze + (0.85 - haze) * level ** 1.3, scale);
  }

  const bitmap = { canvas: document.createElement("canvas"), at: null, version: -1 };
  const overview = { canvas: document.createElement("canvas"), at: null, version: -1 };
  let settle = 0;

  function snapshot(picture, width, height, at, painted) {
    picture.canvas.width = width;
    picture.canvas.height = height;
    // Read back in every frame, so it is painted once, here, and not again from a recording.
    const context = picture.canvas.getContext("2d", { willReadFrequently: true });
    context.setTransform(at.a, 0, 0, at.a, at.e, at.f);
    painted(context);
    picture.at = at;
    picture.version = state.version;
  }

  /** Where a picture painted earlier lies now. */
  function placed(picture, now) {
    const k = now.a / picture.at.a;
    return [now.e - picture.at.e * k, now.f - picture.at.f * k,
      picture.canvas.width * k, picture.canvas.height * k];
  }

  /** Paint many edges from a bitmap while the view moves, sharply once it rests. */
  function paintFromBitmap(context, density) {
    const now = context.getTransform();
    const { width, height } = context.canvas;
    const same = bitmap.version === state.version && bitmap.at
      && ["a", "e", "f"].every((key) => Math.abs(bitmap.at[key] - now[key]) < 0.01);
    const scale = now.a / density;
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (!same && (bitmap.version !== state.version || performance.now() > settle)) {
      snapshot(bitmap, width, height, { a: now.a, e: now.e, f: now.f },
        (inner) => paintBase(inner, scale));
    }
    const [x, y, w, h] = placed(bitmap, now);
    if (x > 1 || y > 1 || x + w < width - 1 || y + h < height - 1) {
      if (overview.version !== state.version) paintOverview();
      context.save();
      const outside = new Path2D();
      outside.rect(0, 0, width, height);
      outside.rect(x, y, w, h);
      context.clip(outside, "evenodd");
      context.drawImage(overview.canvas, ...placed(overview, now));
      context.restore();
    }
    context.drawImage(bitmap.canvas, x, y, w, h);
    context.setTransform(now);
    context.globalAlpha = 1;
  }

  function paintOverview() {
    const box = bounds();
    const k = Math.min(1400 / (box.right - box.left), 1400 / (box.bottom - box.top), 2);
    snapshot(overview, Math.ceil((box.right - box.left) * k),
      Math.ceil((box.bottom - box.top) * k), { a: k, e: -box.left * k, f: -box.top * k },
      (inner) => paintBase(inner, k));
  }

  function paintFaded(context) {
    const rest = edges.filter((edge) => state.edgeOn[edge.e] && !state.chosen.edges.has(edge.e));
    stroke(context, rest, () => 0.07, scaleOf());
  }

  function paintChosen(context, scale) {
    const { chosen, hover } = state;
    if (chosen) {
      const rings = [[], []];
      for (const [e, hops] of chosen.edges) rings[hops === 1 ? 0 : 1].push(edges[e]);
      const crowd = Math.min(1, Math.sqrt(90 / (rings[1].length + 1)));
      stroke(context, rings[1], (level) => 0.1 + 0.32 * crowd + 0.4 * level * level, scale);
      stroke(context, rings[0], (level) => 0.72 + 0.28 * level, scale);
    } else if (hover?.node) {
      const links = [...hover.node.ins, ...hover.node.outs].filter((e) => state.edgeOn[e]);
      stroke(context, links.map((e) => edges[e]), () => 1, scale);
    }
    if (hover?.edge) {
      const thick = { ...hover.edge, bucket: Math.max(2, hover.edge.bucket) };
      stroke(context, [thick], () => 1, scale);
    }
  }

  return {
    paint(context, density) {
      context.lineCap = "butt";
      context.globalAlpha = state.chosen ? 0.1 : 1;
      if (state.shownEdges > CRISP_EDGES) paintFromBitmap(context, density);
      else if (!state.chosen) paintBase(context, scaleOf());
      else paintFaded(context);
      context.globalAlpha = 1;
      paintChosen(context, scaleOf());
    },
    /** The view moves: how long to wait, in ms, until it is worth painting sharply. */
    moving() {
      settle = performance.now() + SETTLE_MS;
      return SETTLE_MS + 10;
    },
  };
};
