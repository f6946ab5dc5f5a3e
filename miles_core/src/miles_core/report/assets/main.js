function head() {
  const run = data.run;
  const theme = el("button", { type: "button", class: "push" }, "Light / dark");
  theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  const done = run.done === null ? "-" : run.total === null ? run.done : `${run.done} / ${run.total}`;
  const facts = [["rollouts", done], ["reward", number(run.reward)], ...Object.entries(run.evaluations).map(([name, value]) => [`eval ${name}`, number(value)]),
    ["time", seconds(run.seconds)]];
  if (run.started !== null) facts.push(["started", new Date(run.started * 1000).toLocaleString()]);
  document.getElementById("head").append(
    el("div", { class: "row" }, el("h1", {}, run.name), el("span", { class: `state ${/^[a-z]+$/.test(run.state) ? run.state : ""}` }, run.state), theme),
    ...(run.error ? [el("p", { class: "error" }, run.error)] : []),
    el("dl", { class: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}

function optionsPage() {
  const parts = [["Summary", data.summary], ["Options", data.config], ["Plugin lock", data.lock]].filter(([, text]) => text);
  if (!parts.length) return el("section", {}, el("p", { class: "faint" }, "The run folder has no config.yaml."));
  return el("section", {}, ...parts.map(([name, text]) => el("div", { class: "card wide" }, el("h2", {}, name), el("pre", {}, text))));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

const PAGES = { Curves: curvesPage, Time: waterfallPage, Samples: samplesPage, Options: optionsPage };

function select(name) {
  for (const tab of document.querySelectorAll("#tabs button")) {
    const chosen = tab.textContent === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  hideTip();
  document.getElementById("main").replaceChildren(PAGES[name]());
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
head();
for (const name of Object.keys(PAGES)) {
  const tab = el("button", { type: "button", role: "tab" }, name);
  tab.addEventListener("click", () => { location.hash = name.toLowerCase(); select(name); });
  tab.addEventListener("keydown", (event) => {
    const tabs = [...document.querySelectorAll("#tabs button")], step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]; next.focus(); next.click(); }
  });
  document.getElementById("tabs").append(tab);
}
select(Object.keys(PAGES).find((name) => `#${name.toLowerCase()}` === location.hash) || "Curves");
addEventListener("hashchange", () => { const name = Object.keys(PAGES).find((each) => `#${each.toLowerCase()}` === location.hash); if (name) select(name); });
addEventListener("scroll", hideTip, { passive: true });
