const WIDTH = 360, HEIGHT = 150, LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 22;
const FIRST = ["rollout/raw_reward", "train/loss", "train/entropy_loss", "train/ppo_kl", "train/grad_norm", "rollout/response_len/mean"];
const AXES = { train: (x) => `optimizer step ${x}`, rollout: (x) => `rollout ${x}`, eval: (x) => `after ${x} rollouts` };

function chart(name, curve, logarithmic) {
  const usable = (y) => typeof y === "number" && (!logarithmic || y > 0);
  const scaled = (y) => (logarithmic ? Math.log10(y) : y);
  const points = curve.x.map((x, i) => [x, curve.y[i]]).filter(([, y]) => usable(y));
  const numbers = curve.y.filter((y) => typeof y === "number");
  const last = numbers.length ? numbers[numbers.length - 1] : null;
  const head = el("div", { class: "row" }, el("h3", {}, name), el("span", { class: "last" }, number(last)));
  const card = el("article", { class: "card", "data-metric": name }, head);
  if (!points.length) {
    card.append(el("p", { class: "faint" }, logarithmic && numbers.length ? "nothing above 0" : "no finite value"));
    return card;
  }
  let [low, high] = points.reduce(([l, h], [, y]) => [Math.min(l, scaled(y)), Math.max(h, scaled(y))], [Infinity, -Infinity]);
  if (low === high) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  const first = points[0][0], end = points[points.length - 1][0];
  const px = (x) => LEFT + ((WIDTH - LEFT - RIGHT) * (x - first)) / (end - first || 1);
  const py = (y) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (scaled(y) - low)) / (high - low);
  const svg = el("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name}, last ${number(last)}` });
  for (const share of [0, 0.5, 1]) {
    const y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
    const value = low + share * (high - low);
    svg.append(el("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
    svg.append(el("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, number(logarithmic ? 10 ** value : value, 3)));
  }
  svg.append(el("text", { x: LEFT, y: HEIGHT - 6 }, first));
  svg.append(el("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, AXES[curve.axis](end)));
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  svg.append(el("path", { class: "curve", d: path }));
  if (points.length <= 40) for (const [x, y] of points) svg.append(el("circle", { class: "dot", cx: px(x), cy: py(y), r: 2.2 }));
  const cross = el("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const dot = el("circle", { class: "dot", r: 4, visibility: "hidden" });
  svg.append(cross, dot);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const [x, y] = points.reduce((best, each) => (Math.abs(px(each[0]) - at) < Math.abs(px(best[0]) - at) ? each : best));
    for (const [part, key, value] of [[cross, "x1", px(x)], [cross, "x2", px(x)], [dot, "cx", px(x)], [dot, "cy", py(y)]])
      part.setAttribute(key, value);
    for (const part of [cross, dot]) part.setAttribute("visibility", "visible");
    showTip(event, `${AXES[curve.axis](x)}\n${number(y)}`);
  });
  svg.addEventListener("pointerleave", () => {
    for (const part of [cross, dot]) part.setAttribute("visibility", "hidden");
    hideTip();
  });
  card.append(svg);
  return card;
}

function curvesPage() {
  const names = Object.keys(data.curves);
  const body = el("div", {});
  const count = el("span", { class: "faint", "aria-live": "polite" });
  let logarithmic = false, wanted = "";
  const draw = () => {
    const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
    const found = names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
    const groups = new Map();
    const shown = FIRST.filter((name) => found.includes(name));
    const evaluated = found.filter((name) => /^eval\/[^/]+$/.test(name) && !/-(truncated_ratio|failed|pass@\d+)$/.test(name));
    if (shown.length + evaluated.length) groups.set("most looked at", [...new Set([...shown, ...evaluated])]);
    for (const name of found) {
      const group = name.includes("/") ? name.slice(0, name.indexOf("/")) : "other";
      groups.set(group, [...(groups.get(group) || []), name]);
    }
    count.textContent = `${found.length} of ${names.length} metrics`;
    body.replaceChildren(
      ...[...groups].flatMap(([group, members]) => [
        el("div", { class: "group" }, group),
        el("div", { class: "grid" }, ...members.map((name) => chart(name, data.curves[name], logarithmic))),
      ]),
    );
    if (!names.length) body.append(el("p", { class: "faint" }, "No metrics: the run logged nothing to metrics.jsonl."));
  };
  const search = el("input", { type: "search", placeholder: "Search metrics", "aria-label": "Search metrics" });
  search.addEventListener("input", () => { wanted = search.value; draw(); });
  draw();
  return el("section", {}, el("div", { class: "row tools" }, search, toggle("Log scale", false, (now) => { logarithmic = now; draw(); }), count), body);
}
