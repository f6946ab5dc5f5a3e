function versionsOf(sample) {
  const versions = [];
  for (const [version, count] of sample.weight_versions || []) for (let i = 0; i < count; i++) versions.push(version);
  return versions;
}

/* The response: a span for every token whose place is known. Places count characters, not UTF-16 units. */
function response(sample) {
  const characters = Array.from(sample.response || "");
  const ends = sample.token_ends || [], probabilities = sample.log_probs || [], versions = versionsOf(sample);
  const made = el("pre", { class: "text", "data-role": "response" });
  let position = 0, waiting = [];
  ends.forEach((end, token) => {
    waiting.push(token);
    if (end <= position || position >= characters.length) return;
    const part = el("span", { "data-tokens": waiting.join(" ") }, characters.slice(position, end).join(""));
    const worst = Math.min(...waiting.map((i) => probabilities[i] ?? 0));
    if (worst < 0) part.style.background = `rgba(var(--heat), ${Math.min(0.6, -worst / 6).toFixed(3)})`;
    if (sample.loss_mask && waiting.every((i) => sample.loss_mask[i] === "0")) part.className = "off";
    made.append(part);
    position = end;
    waiting = [];
  });
  made.append(characters.slice(position).join(""));
  const tell = (event) => {
    const tokens = event.target.dataset && event.target.dataset.tokens;
    if (!tokens) return hideTip();
    const lines = tokens.split(" ").map(Number).map((i) => {
      const p = probabilities[i];
      const said = p === undefined ? "no log-prob" : `log-prob ${p.toFixed(3)} (p ${number(Math.exp(p))})`;
      const mask = sample.loss_mask && sample.loss_mask[i] === "0" ? ", not trained on" : "";
      return `token ${i}: ${said}, weights ${versions[i] ?? "-"}${mask}`;
    });
    return showTip(event, lines.join("\n"));
  };
  made.addEventListener("pointermove", tell);
  made.addEventListener("pointerdown", tell);
  made.addEventListener("pointerleave", hideTip);
  return made;
}

function fate(sample) {
  if (sample.dropped) return `dropped: ${sample.dropped}`;
  if (sample.removed) return "removed from the loss";
  if (sample.reward === null || sample.reward === undefined) return sample.graded === false && sample.detail ? `not graded: ${sample.detail}` : "no reward";
  return "";
}

function detail(sample) {
  const versions = (sample.weight_versions || []).map(([version, count]) => `${version} (${count} tokens)`).join(", ");
  const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const pairs = [
    ["reward", number(sample.reward)], ["why not", fate(sample)], ["detail", sample.detail], ["label", sample.label === null ? "" : plain(sample.label)],
    ["status", sample.status], ["tokens", sample.response_tokens], ["weights", versions], ["group, sample", `${sample.group}, ${sample.index}`],
  ].filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const known = (sample.token_ends || []).length;
  const note = known && known < sample.response_tokens ? `Log-probs of the first ${known} of ${sample.response_tokens} tokens are known.` : "";
  return el("div", { class: "card" },
    el("dl", { class: "pairs" }, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("h2", {}, "Prompt"), el("pre", { class: "text", "data-role": "prompt" }, sample.prompt || ""),
    el("h2", {}, "Response"), response(sample), note ? el("p", { class: "faint" }, note) : null);
}

function samplesPage() {
  if (!data.samples.length) return el("section", {}, el("p", { class: "faint" }, "No samples: the run wrote none."));
  const files = [...new Set(data.samples.map((sample) => sample.file))];
  const file = el("select", { "aria-label": "Rollout" }, el("option", { value: "" }, "all"), ...files.map((name) => el("option", { value: name }, name.replace("_", " "))));
  const kind = el("select", { "aria-label": "Kind" }, ...["all", "trained on", "dropped", "not graded"].map((name) => el("option", {}, name)));
  const order = el("select", { "aria-label": "Order" }, ...["as sampled", "lowest reward", "highest reward"].map((name) => el("option", {}, name)));
  const search = el("input", { type: "search", placeholder: "Search prompts and responses", "aria-label": "Search samples" });
  const list = el("div", { class: "card list" }), shown = el("div", {}), count = el("span", { class: "faint", "aria-live": "polite" });
  file.value = files.find((name) => name === files.filter((each) => each.startsWith("rollout_")).pop()) || "";
  const open = (sample, button) => {
    for (const each of list.querySelectorAll("[aria-current]")) each.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    shown.replaceChildren(detail(sample));
  };
  const draw = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const value = (sample) => (typeof sample.reward === "number" ? sample.reward : -Infinity);
    const found = data.samples.filter((sample) => {
      if (file.value && sample.file !== file.value) return false;
      if (kind.value === "dropped" && !sample.dropped) return false;
      if (kind.value === "trained on" && fate(sample)) return false;
      if (kind.value === "not graded" && typeof sample.reward === "number") return false;
      const text = `${sample.prompt} ${sample.response}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (order.value !== "as sampled") found.sort((a, b) => (order.value === "lowest reward" ? value(a) - value(b) : value(b) - value(a)));
    count.textContent = `${found.length} samples`;
    list.replaceChildren(...found.map((sample) => {
      const badge = fate(sample) ? el("span", { class: "badge lost" }, fate(sample).slice(0, 60)) : null;
      const button = el("button", { type: "button" }, el("span", { class: "row" }, el("b", {}, number(sample.reward)), el("span", { class: "badge" }, sample.file.replace("_", " ")), badge),
        el("span", { class: "peek" }, (sample.response || "").slice(0, 160)));
      button.addEventListener("click", () => open(sample, button));
      return button;
    }));
    if (found.length) open(found[0], list.firstChild);
    else shown.replaceChildren(el("p", { class: "faint" }, "No sample is like that."));
  };
  for (const control of [file, kind, order]) control.addEventListener("change", draw);
  search.addEventListener("input", draw);
  draw();
  return el("section", {}, el("div", { class: "row tools" }, file, kind, order, search, count), el("div", { class: "browser" }, list, shown));
}
