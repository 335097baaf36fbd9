"use strict";
// The page of lawm_jax.play: plain JavaScript in three files, line.js, play.js and tabs.js, which share
// their names. No network but its own server.

const $ = id => document.getElementById(id);
const played = { drawn: 0, pressed: 0, first: 0, ready: 0 }; // times in ms, for measurements
window.played = played;

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

// --- The line to the server: messages are answered in order. ---

const line = { socket: null, token: null, waiting: [], post: Promise.resolve() };

function connect() {
  return new Promise((resolve, reject) => {
    const url = new URL("socket", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    let socket;
    try { socket = new WebSocket(url); } catch { return resolve(posting()); }
    const late = setTimeout(() => socket.close(), 4000);
    socket.binaryType = "arraybuffer";
    socket.onmessage = event => {
      const reply = typeof event.data === "string" ? JSON.parse(event.data) : event.data;
      if (line.token) return line.waiting.shift()?.(reply);
      clearTimeout(late);
      if (reply.full) return reject(new Error(reply.error));
      line.token = reply.token;
      line.socket = socket;
      resolve();
    };
    socket.onclose = () => {
      clearTimeout(late);
      if (!line.token) return resolve(posting());
      stop("The server has stopped, or the connection was lost. Reload the page.");
    };
  });
}

// Without a websocket, as behind Colab's proxy, the same messages are posted.
async function posting() {
  const reply = await fetch("session", { method: "POST", body: "{}",
    headers: { "Content-Type": "application/json" } }).then(r => r.json());
  if (!reply.token) throw new Error(reply.error);
  line.token = reply.token;
}

async function ask(message) {
  const text = JSON.stringify(message);
  let reply;
  if (line.socket) {
    reply = await new Promise(resolve => { line.waiting.push(resolve); line.socket.send(text); });
  } else {
    const sent = line.post.then(() => fetch(`session/${line.token}`, { method: "POST", body: text }));
    line.post = sent.catch(() => {});
    const response = await sent;
    const json = response.headers.get("Content-Type").includes("json");
    reply = json ? await response.json() : await response.arrayBuffer();
    if (reply.gone) stop(reply.error);
  }
  if (reply.error) throw new Error(reply.error);
  return reply;
}

function stop(text) {
  release();
  $("about").textContent = text;
  $("about").className = "error";
}
