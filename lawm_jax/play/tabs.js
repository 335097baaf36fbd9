"use strict";
// What the other tabs show, and the start of the page.

function clear(out) {
  clearInterval(out.timer);
  out.replaceChildren();
}

// Runs a command that takes seconds, and shows what it returns.
async function run(button, out, message, show, text) {
  button.disabled = true;
  clear(out);
  const begin = performance.now();
  const busy = make("p", { className: "busy", textContent: text });
  out.append(busy);
  const clock = setInterval(() => {
    busy.textContent = `${text} ${((performance.now() - begin) / 1000).toFixed(0)} s`;
  }, 1000);
  try {
    const reply = await ask(message);
    clear(out);
    await show(out, reply);
  } catch (error) {
    out.replaceChildren(make("p", { className: "error", textContent: error.message }));
  }
  clearInterval(clock);
  button.disabled = false;
}

async function films(out, reply) {
  const loaded = await Promise.all(reply.films.map(film => Promise.all(film.frames.map(async src => {
    const image = make("img", { src });
    await image.decode();
    return image;
  }))));
  const canvases = loaded.map(([image]) =>
    make("canvas", { width: image.naturalWidth, height: image.naturalHeight }));
  const count = Math.max(...loaded.map(x => x.length));
  const slider = make("input", { type: "range", min: 0, max: count - 1, step: 1, value: 0,
    ariaLabel: "frame" });
  const shown = make("output", { textContent: "0" });
  const pause = make("button", { textContent: "Pause" });
  const show = i => {
    loaded.forEach((images, k) => canvases[k].getContext("2d").drawImage(
      images[Math.min(i, images.length - 1)], 0, 0));
    slider.value = i;
    shown.textContent = String(i);
  };
  let hold = 0;
  const tick = () => {
    const i = Number(slider.value);
    if (i < count - 1) return show(i + 1);
    hold = (hold + 1) % 4; // rests on the last frame
    if (!hold) show(0);
  };
  const go = () => {
    clearInterval(out.timer);
    out.timer = setInterval(tick, 1000 / state.fps);
    pause.textContent = "Pause";
  };
  const halt = () => { clearInterval(out.timer); out.timer = null; pause.textContent = "Play"; };
  pause.onclick = () => (out.timer ? halt() : go());
  slider.oninput = () => { halt(); show(Number(slider.value)); };
  const grid = make("div", { className: reply.films.length === 3 ? "films three" : "films" },
    ...canvases.map((canvas, k) => make("figure", {}, canvas,
      make("figcaption", { textContent: reply.films[k].label }))));
  out.append(grid, make("div", { className: "bar" }, pause, make("label", {}, slider, shown)));
  if (reply.text) out.append(make("p", { className: "note", textContent: reply.text }));
  show(0);
  if (count > 1) go();
}

$("run-transfer").onclick = () => run($("run-transfer"), document.querySelector("#transfer .out"),
  { do: "transfer", action_source: state.clip.source, action_clip: state.clip.clip,
    scene_source: state.scene.source, scene_clip: state.scene.clip }, films, "Imagining …");

let seed = 0;
$("run-sample").onclick = () => run($("run-sample"), document.querySelector("#sample .out"),
  { do: "sample", ...state.clip, seed: seed++ }, films, "Imagining …");

function table(head, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map(x => make(tag, { textContent: x })));
  return make("table", {}, line("th", head), ...rows.map(row => line("td", row)));
}

$("run-plan").onclick = () => run($("run-plan"), document.querySelector("#plan .out"),
  { do: "plan", ...state.clip, first: Number($("first").value), goal: Number($("goal").value) },
  async (out, reply) => {
    if (reply.films.length) await films(out, reply);
    const [before, after] = reply.distance;
    out.append(table(["sum of actions", "planned", "in the clip"], reply.actions),
      make("p", { className: "note", textContent:
        `Distance of the state to the goal: ${before} at the start, ${after} at the imagined end.` }));
  }, "Planning; the first plan of each length also compiles …");

$("run-act").onclick = () => run($("run-act"), $("acted"),
  { do: "act", source: state.clip.source, scene: Number($("scene").value) },
  async (out, reply) => {
    await films(out, reply);
    const last = reply.path.at(-1), best = Math.min(...reply.path.slice(1));
    out.append(make("p", { className: "note", textContent:
      `${reply.path[0].toFixed(2)} m from the goal at the start, ${last.toFixed(2)} m at the end, ` +
      `${best.toFixed(2)} m at best; ` +
      `${last <= reply.radius ? "reached" : "not reached"} (within ${reply.radius} m).` }));
  }, "Rendering the scene, planning and acting …");

let preview = 0;
async function showPlanning() {
  const own = state.sources.find(x => x.name === state.clip.source);
  const why = own ? own.plan : "Planning needs a clip from a data source with real actions.";
  const act = own ? own.plan || own.simulator : why;
  for (const [id, text, button] of [["plan-missing", why, "run-plan"], ["act-missing", act, "run-act"]]) {
    $(id).textContent = text;
    $(id).hidden = !text;
    $(button).disabled = Boolean(text);
  }
  const frames = clipsOf(state.clip.source)[state.clip.clip].frames;
  const first = Math.min(Number($("first").value), frames - 2);
  $("first").max = frames - 2;
  $("goal").max = Math.min(frames - 1, first + 8);
  $("goal").min = first + 1;
  $("first-shown").textContent = String(first);
  $("goal-shown").textContent = $("goal").value;
  if ($("plan").hidden) return;
  const number = ++preview;
  try {
    const reply = await ask({ do: "frames", ...state.clip });
    if (number !== preview) return;
    await draw($("first-frame"), reply.frames[first]);
    await draw($("goal-frame"), reply.frames[Number($("goal").value)]);
  } catch (error) { fail(error); }
}
$("first").oninput = $("goal").oninput = showPlanning;

$("run-look").onclick = () => run($("run-look"), document.querySelector("#look .out"),
  { do: "look", ...state.clip }, look, "Inferring …");

async function look(out, reply) {
  const canvas = make("canvas", { className: "chart" });
  out.append(make("div", { className: "scroll" }, canvas));
  const images = await Promise.all(reply.frames.map(async src => {
    const image = make("img", { src });
    await image.decode();
    return image;
  }));
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(`--${name}`).trim();
  const width = Math.max(620, canvas.clientWidth), T = images.length, left = 44;
  const cell = (width - left) / T, thumb = Math.min(cell - 3, 72);
  const tops = { series: thumb + 34, bars: thumb + 34 + 210 }, height = tops.bars + 150;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height * (canvas.clientWidth || width) / width}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = "12px system-ui, sans-serif";
  const text = (x, y, string, shade = "soft", align = "left") => {
    pen.fillStyle = colour(shade);
    pen.textAlign = align;
    pen.fillText(string, x, y);
  };
  const centre = t => left + cell * (t + 0.5), between = t => left + cell * (t + 1);
  images.forEach((image, t) => pen.drawImage(image, centre(t) - thumb / 2, 0, thumb, thumb));
  // Latents along the main directions, between the frames that they lead from and to.
  const shades = ["a", "b", "c"], most = Math.max(1.5, ...reply.series.flat().map(Math.abs));
  const middle = tops.series + 90, unit = 72 / most;
  pen.lineWidth = 1;
  for (const value of [-1, 0, 1]) {
    pen.strokeStyle = colour("line");
    pen.beginPath();
    pen.moveTo(left, middle - value * unit);
    pen.lineTo(width, middle - value * unit);
    pen.stroke();
    text(left - 6, middle - value * unit + 4, value > 0 ? "+1 σ" : value < 0 ? "−1 σ" : "0", "soft", "right");
  }
  reply.series.forEach((values, k) => {
    pen.strokeStyle = pen.fillStyle = colour(shades[k]);
    pen.lineWidth = 2;
    pen.beginPath();
    values.forEach((value, t) => pen.lineTo(between(t), middle - value * unit));
    pen.stroke();
    values.forEach((value, t) => {
      pen.beginPath();
      pen.arc(between(t), middle - value * unit, 3, 0, 7);
      pen.fill();
    });
    const hint = reply.hints[k] ? ` (${reply.hints[k]})` : "";
    text(left + k * 190, tops.series - 8, `● ${reply.labels[k]}${hint}`, shades[k]);
  });
  reply.codes?.forEach((code, t) => text(between(t), middle + 96, String(code), "ink", "middle"));
  // How far each latent moves the prediction, beside how much the clip changes.
  const base = tops.bars + 130, high = 104 / Math.max(1e-9, ...reply.change, ...reply.effect);
  text(left, tops.bars + 4, "■ effect of the latent on the prediction", "a");
  text(left + 250, tops.bars + 4, "■ change of the clip's state", "soft");
  const wide = Math.min(cell * 0.32, 16);
  reply.change.forEach((change, t) => {
    pen.fillStyle = colour("a");
    pen.fillRect(between(t) - wide - 1, base - reply.effect[t] * high, wide, reply.effect[t] * high);
    pen.fillStyle = colour("soft");
    pen.fillRect(between(t) + 1, base - change * high, wide, change * high);
  });
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  out.append(make("p", { className: "note", textContent:
    "Effect: mean absolute difference between the states predicted with the latent and with the mean " +
    `latent, ${mean(reply.effect).toFixed(3)} on average; the state itself changes by ` +
    `${mean(reply.change).toFixed(3)}.${reply.codes ? " Numbers: the codes." : ""}` }));
}

// --- Tabs and start ---

const tabs = [...document.querySelectorAll("[role=tab]")];
function open(tab) {
  release();
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  $("picked").textContent = tab.id === "tab-transfer" ? "Actions" : "Clip";
  if (tab.id === "tab-plan" && state.clip) showPlanning();
  if (tab.id === "tab-look" && !document.querySelector("#look .out").children.length && state.clip)
    $("run-look").click();
}
for (const tab of tabs) {
  tab.onclick = () => open(tab);
  tab.onkeydown = event => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    const next = tabs[(tabs.indexOf(tab) + way + tabs.length) % tabs.length];
    next.focus();
    open(next);
  };
}

(async () => {
  try {
    await connect();
    const reply = await ask({ do: "hello" });
    Object.assign(state, { sources: reply.sources, fps: reply.fps });
    $("about").textContent = reply.about;
    $("notes").replaceChildren(...reply.notes.map(text => make("p", { textContent: text })));
    const [first, second = first] = reply.sources;
    state.clip = { source: first.name, clip: 0 };
    state.scene = { source: second.name, clip: Math.min(1, second.clips.length - 1) };
    await choose(state.clip);
  } catch (error) { stop(error.message); }
})();
