const PHASES = {
  rollout: "generation", offload: "moving to the trainer", train: "training", save: "saving", publish: "publishing weights", evaluate: "evaluation",
};
const LANES = 40;

function waterfallPage() {
  if (!data.spans.length) return el("section", {}, el("p", { class: "faint" }, "No timings: the run wrote no timeline.jsonl."));
  const rollouts = new Map();
  for (const [phase, rollout, start, spent] of data.spans)
    rollouts.set(rollout, [...(rollouts.get(rollout) || []), { phase, start, spent }]);
  const rows = [...rollouts].sort(([a], [b]) => a - b).map(([rollout, spans]) => {
    const begin = Math.min(...spans.map((s) => s.start));
    return { rollout, spans, begin, length: Math.max(...spans.map((s) => s.start + s.spent)) - begin };
  });
  const totals = new Map();
  for (const [phase, , , spent] of data.spans) totals.set(phase, (totals.get(phase) || 0) + spent);
  const colour = (phase) => `var(--p-${phase in PHASES ? phase : "start"})`;
  const swatch = (phase) => { const made = el("i", {}); made.style.background = colour(phase); return made; };
  const legend = el("div", { class: "legend" }, ...[...totals].sort((a, b) => b[1] - a[1]).map(([phase, spent]) =>
    el("span", {}, swatch(phase), `${PHASES[phase] || phase} ${seconds(spent)}`)));
  const body = el("div", {});
  let from = 0;
  const earlier = el("button", { type: "button" }, "Earlier"), later = el("button", { type: "button" }, "Later");
  const where = el("span", { class: "faint" });
  const draw = () => {
    const shown = rows.slice(from, from + LANES);
    const longest = Math.max(...shown.map((row) => row.length), 1e-6);
    const lanes = shown.flatMap(({ rollout, spans, begin, length }) => {
      const lane = el("div", { class: "lane" }, ...spans.map(({ phase, start, spent }) => {
        const bar = el("b", { "data-phase": phase });
        bar.style.left = `${(100 * (start - begin)) / longest}%`;
        bar.style.width = `${(100 * spent) / longest}%`;
        bar.style.background = colour(phase);
        bar.addEventListener("pointermove", (event) =>
          showTip(event, `${PHASES[phase] || phase} ${seconds(spent)}\nfrom ${seconds(start - begin)} on`));
        bar.addEventListener("pointerleave", hideTip);
        return bar;
      }));
      return [el("span", { class: "faint" }, rollout < 0 ? "before" : `rollout ${rollout}`), lane, el("span", { class: "faint sum" }, seconds(length))];
    });
    const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => el("span", {}, seconds(share * longest)));
    body.replaceChildren(el("div", { class: "fall" }, ...lanes, el("span", {}), el("div", { class: "scale" }, ...marks), el("span", { class: "sum" })));
    earlier.disabled = from === 0;
    later.disabled = from + LANES >= rows.length;
    where.textContent = `rows ${from + 1} to ${from + shown.length} of ${rows.length}`;
  };
  earlier.addEventListener("click", () => { from = Math.max(0, from - LANES); draw(); });
  later.addEventListener("click", () => { from += LANES; draw(); });
  draw();
  const tools = rows.length > LANES ? el("div", { class: "row tools" }, earlier, later, where) : null;
  return el("section", {}, legend, tools, el("div", { class: "card" }, body));
}
