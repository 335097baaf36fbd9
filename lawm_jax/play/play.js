"use strict";
// The clips, and the tab in which a person plays.

// --- Clips ---

const state = { sources: [], uploads: [], fps: 4, clip: null, scene: null, controls: [], way: null };

function clipsOf(name) {
  return name ? state.sources.find(x => x.name === name).clips : state.uploads;
}

function picker(sources, strip, place, change) {
  const names = [...state.sources.map(x => x.name), ...(state.uploads.length ? [""] : [])];
  sources.replaceChildren(...(names.length < 2 ? [] : names.map(name => {
    const button = make("button", { textContent: name || "uploads" });
    button.setAttribute("aria-pressed", name === place.source);
    button.onclick = () => change({ source: name, clip: 0 });
    return button;
  })));
  strip.replaceChildren(...clipsOf(place.source).map((clip, i) => {
    const image = make("img", { src: clip.picture, alt: clip.label });
    const button = make("button", { title: clip.label }, image);
    button.setAttribute("aria-pressed", i === place.clip);
    button.onclick = () => change({ source: place.source, clip: i });
    return button;
  }));
}

function showPickers() {
  picker($("sources"), $("clips"), state.clip, choose);
  picker($("scene-sources"), $("scene-clips"), state.scene, place => {
    state.scene = place;
    showPickers();
  });
}

async function choose(place) {
  release();
  state.clip = place;
  showPickers();
  document.querySelectorAll(".out").forEach(out => clear(out));
  showPlanning();
  try {
    const reply = await ask({ do: "start", ...place });
    drawing = drawing.then(async () => { // after frames that are still on their way
      await draw($("real"), reply.real);
      if (reply.imagined) await draw($("imagined"), reply.imagined);
    });
    await drawing;
    played.ready ||= performance.now();
    counted(0);
    $("rate").textContent = "";
    recording(false);
    $("save").hidden = true;
    const same = reply.controls.find(x => x.by === state.way?.by);
    state.controls = reply.controls;
    control(same || reply.controls[0]);
  } catch (error) { fail(error); }
}

$("upload").onchange = async () => {
  const [file] = $("upload").files;
  if (!file) return;
  const problem = $("upload-error"), query = new URLSearchParams({ name: file.name, start: $("from").value });
  problem.hidden = false;
  problem.className = "busy";
  problem.textContent = `Reading ${file.name} …`;
  try {
    if (file.size > 50 * 2 ** 20)
      throw new Error(`${file.name}: expected at most 50 MB, got ${(file.size / 2 ** 20).toFixed(0)} MB`);
    const reply = await fetch(`session/${line.token}/upload?${query}`, { method: "POST", body: file });
    const found = await reply.json();
    if (found.error) throw new Error(found.error);
    state.uploads = found.clips;
    problem.hidden = true;
    await choose({ source: "", clip: state.uploads.length - 1 });
  } catch (error) {
    problem.className = "error";
    problem.textContent = error.message;
  }
  $("upload").value = "";
};

// --- Play ---

const held = new Map(); // what is held, such as "0+" -> its button
let timer = null, flying = 0, drawing = Promise.resolve(), times = [];

async function draw(canvas, source) {
  const image = typeof source === "string" ? make("img", { src: source }) : source;
  if (image !== source) await image.decode();
  const bitmap = await createImageBitmap(image);
  if (canvas.width !== bitmap.width) { canvas.width = bitmap.width; canvas.height = bitmap.height; }
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}

function counted(steps) { $("count").textContent = `step ${steps}`; }

// Draws the frame that a command returns; frames are drawn in the order of their commands.
function frame(message) {
  const reply = ask(message);
  drawing = drawing.then(async () => {
    const bytes = await reply;
    await draw($("imagined"), new Blob([new Uint8Array(bytes, 4)], { type: "image/jpeg" }));
    counted(new DataView(bytes).getUint32(0));
    const now = performance.now();
    played.drawn += 1;
    played.first ||= now;
    times = [...times.filter(x => x > now - 1000), now];
  }).catch(fail);
  return drawing;
}

async function step() {
  if (flying >= 2 || !held.size) return;
  const way = state.way, message = { do: "step", by: way.by, size: Number($("size").value) };
  if (way.by === "codes") {
    message.code = Number([...held.keys()].at(-1));
  } else {
    message.values = way.axes.map((_, i) => held.has(`${i}+`) - held.has(`${i}-`));
  }
  flying += 1;
  await frame(message);
  flying -= 1;
}

function press(name, button) {
  if (held.has(name)) return;
  held.set(name, button);
  button.classList.add("held");
  if (held.size > 1) return;
  played.pressed = performance.now();
  played.first = 0;
  times = [];
  step();
  timer = setInterval(step, 1000 / Number($("speed").value));
}

function release(name) {
  for (const one of name === undefined ? [...held.keys()] : [name]) {
    held.get(one)?.classList.remove("held");
    held.delete(one);
  }
  if (!held.size) clearInterval(timer);
}

const keys = new Map(); // key -> name and button

function holdable(name, text, key, title = "") {
  const button = make("button", { title }, text);
  if (key) {
    button.append(make("kbd", { textContent: key }));
    keys.set(key, [name, button]);
  }
  button.onpointerdown = event => {
    event.preventDefault();
    button.setPointerCapture(event.pointerId);
    press(name, button);
  };
  button.onpointerup = button.onpointercancel = button.onlostpointercapture = () => release(name);
  button.oncontextmenu = event => event.preventDefault();
  button.onkeydown = event => {
    if (!event.repeat && (event.key === "Enter" || event.key === " ")) press(name, button);
  };
  button.onkeyup = event => { if (event.key === "Enter" || event.key === " ") release(name); };
  button.onblur = () => release(name);
  return button;
}

function control(way) {
  release();
  state.way = way;
  keys.clear();
  $("ways").replaceChildren(...(state.controls.length < 2 ? [] : state.controls.map(one => {
    const button = make("button", { textContent: one.label, onclick: () => control(one) });
    button.setAttribute("aria-pressed", one === way);
    return button;
  })));
  const pad = $("pad");
  pad.className = way?.by === "codes" ? "pad codes" : "pad";
  if (!way) return pad.replaceChildren(make("p", { className: "note", textContent: "This clip has no controls." }));
  if (way.by === "codes") {
    pad.replaceChildren(...way.codes.map(([code, used], i) =>
      holdable(String(code), String(code), i < 10 ? String(i) : "",
        `code ${code} of ${way.count}, inferred ${used} times in the clips`)));
    return;
  }
  pad.replaceChildren(...way.axes.map((axis, i) => {
    const pair = [holdable(`${i}-`, axis.minus, axis.keys[0]), holdable(`${i}+`, axis.plus, axis.keys[1])];
    if (axis.swapped) pair.reverse();
    return make("div", { className: "axis" }, make("small", { textContent: axis.hint }), ...pair);
  }));
}

const typing = target => target.matches?.("input[type=number], input[type=file], textarea");

addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if ($("play").hidden) return;
  const key = event.key.toLowerCase();
  if (key === "z") return $("undo").click();
  if (key === "r") return $("reset").click();
  if (keys.has(key)) press(...keys.get(key));
});
addEventListener("keyup", event => {
  const found = keys.get(event.key.toLowerCase());
  if (found) release(found[0]);
});
addEventListener("blur", () => release());
document.addEventListener("visibilitychange", () => release());

$("undo").onclick = () => frame({ do: "undo" });
$("reset").onclick = () => { release(); frame({ do: "reset" }); };
$("size").oninput = () => { $("size-shown").textContent = $("size").value; };
$("speed").oninput = () => {
  $("speed-shown").textContent = `${$("speed").value} / s`;
  if (!held.size) return;
  clearInterval(timer);
  timer = setInterval(step, 1000 / Number($("speed").value));
};
setInterval(() => {
  times = times.filter(x => x > performance.now() - 1000);
  if (held.size) $("rate").textContent = `${times.length} frames/s`;
}, 500);

function recording(on) {
  $("record").setAttribute("aria-pressed", on);
  $("record").textContent = on ? "Recording …" : "Record";
}

$("record").onclick = async () => {
  const on = $("record").getAttribute("aria-pressed") !== "true";
  try {
    await ask({ do: "record", on });
    recording(on);
    $("save").hidden = false;
  } catch (error) { fail(error); }
};
$("save").onclick = async () => {
  try {
    const film = await ask({ do: "film", rate: Number($("speed").value) });
    const link = make("a", { download: "imagined.mp4",
      href: URL.createObjectURL(new Blob([film], { type: "video/mp4" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) { fail(error); }
};

function fail(error) {
  release();
  $("notes").replaceChildren(make("p", { className: "error", textContent: error.message }));
}
