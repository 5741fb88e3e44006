// The page Preferences in the browser. The server makes all HTML of data; here it is put in place, keys are read, time
// is measured, and a judgement that could not be stored is kept and sent again as it was.
// Gradio runs this with `element`, the component, and `server`, whose functions are calls of the server's.
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
const DRAFT = "alignlab-judging";
const asked = new URLSearchParams(location.search);
let seat = null; // who judges what: {project, name, order}
let task = null; // the comparison on the page
let undo = null; // the token of the last judgement
let busy = false;
let waiting = null; // a message that was not answered, to be sent again as it is
let kept = 0, since = null; // seconds that this comparison was looked at before and since it came into view
let joined = false; // the next answer ranked is equal to the last one

const call = async (message) => {
  let reply;
  try { reply = await server.act(message); } catch (error) { reply = undefined; }
  return reply ?? { ok: false, again: true, error: "The server does not answer; your judgement is kept here." };
};
const memory = (store, key, value) => {
  try {
    if (value === undefined) return JSON.parse(store.getItem(key));
    store.setItem(key, JSON.stringify(value));
  } catch (error) { return null; } // a browser that keeps nothing
};
const say = (words) => { find("[data-status]").textContent = words; };
const complain = (sentence, again) => {
  find("[data-complaint]").hidden = !sentence;
  find("[data-complaint-text]").textContent = sentence || "";
  find("[data-again]").hidden = !again;
  if (sentence) find(again ? "[data-again]" : "[data-complaint]").focus();
};

// Time, while the page is looked at.
const seconds = () => kept + (since === null ? 0 : (performance.now() - since) / 1000);
const watchClock = (looking) => { kept = seconds(); since = looking ? performance.now() : null; };
document.addEventListener("visibilitychange", () => task && watchClock(!document.hidden));

// What is not sent yet outlives a reload.
const places = () => all("[data-rank]").map((one) => one.value);
const grades = () => all(".answer").map((one) => one.querySelector("[data-grade]:checked")?.value ?? "");
const draft = () => task && memory(sessionStorage, DRAFT, {
  ...seat, current: task.id, seconds: seconds(), reason: find("[data-reason]").value, places: places(), grades: grades(),
  waiting,
});
window.addEventListener("pagehide", draft);

// One message at a time: a key that is pressed twice judges nothing that was not seen.
const send = async (message, mark) => {
  if (busy) return;
  busy = true;
  find("[data-desk]").setAttribute("aria-busy", "true");
  all("[data-act]").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.act === mark)));
  const slow = setTimeout(() => say("Saving…"), 400);
  const reply = await call(message);
  clearTimeout(slow);
  busy = false;
  find("[data-desk]").removeAttribute("aria-busy");
  waiting = reply.ok || !reply.again ? null : { message, mark };
  if (!reply.ok) { say(""); complain(reply.error, reply.again); draft(); return; }
  complain("", false);
  show(reply);
};

const show = (reply) => {
  task = reply.task;
  undo = reply.undo;
  joined = false;
  const before = memory(sessionStorage, DRAFT);
  const known = task && before && before.current === task.id && before.name === seat.name ? before : null;
  find("[data-desk]").innerHTML = (reply.notice || "") + reply.html;
  find("[data-progress]").innerHTML = reply.progress;
  find("[data-judging]").hidden = false;
  find("[data-why]").hidden = !task;
  find("[data-reason]").value = known?.reason || "";
  all("[data-rank]").forEach((one, i) => { one.value = known?.places?.[i] ?? ""; });
  all(".answer").forEach((one, i) => {
    const grade = known?.grades?.[i] && one.querySelector(`[data-grade][value="${Number(known.grades[i])}"]`);
    if (grade) grade.checked = true;
  });
  all('[data-act="undo"]').forEach((one) => { one.disabled = !undo; });
  kept = known?.seconds || 0;
  since = document.hidden ? null : performance.now();
  say(reply.said || "");
  mark();
  draft();
  const question = find(".question");
  if (question) { question.focus({ preventScroll: true }); }
  if (find("[data-judging]").getBoundingClientRect().top < 0) find("[data-judging]").scrollIntoView();
  if (reply.people >= 2) agree();
  if (reply.wait) setTimeout(look, 1000 * reply.wait, reply.wait);
};

// Where questions come while one waits, the page looks for them, and changes only when there is one.
const look = async (every) => {
  if (task || busy || waiting) return;
  const sought = seat, reply = await call({ do: "next", ...seat });
  if (task || busy || waiting || sought !== seat) return;
  if (reply.ok && reply.task) show(reply);
  else setTimeout(look, 1000 * every, every);
};

let measured = 0; // when the agreement was asked for last
const agree = async () => {
  if (Date.now() - measured < 10000) return;
  measured = Date.now();
  const reply = await call({ do: "agreement", ...seat });
  if (!reply.ok || !reply.agreement) return;
  find("[data-agreement]").innerHTML = reply.agreement;
  find("[data-agreement-box]").hidden = false;
};

const judge = (verdict, mark) => {
  if (!task || busy) return;
  if (waiting) { complain(find("[data-complaint-text]").textContent, true); return; }
  const reason = find("[data-reason]").value;
  draft();
  send({ do: "record", ...seat, comparison: task.id, token: task.token, shown: task.shown, reason,
         seconds: seconds(), ...verdict }, mark);
};

// Rankings and ratings are put together before they are sent.
const mark = () => {
  if (task?.kind !== "rating") return;
  const open = grades().indexOf("");
  all(".answer").forEach((one, i) => one.classList.toggle("current", i === open));
};
const rank = (place) => {
  const chosen = find(`[data-rank="${place}"]`);
  if (!chosen || chosen.value) return;
  const last = Math.max(0, ...places().map(Number));
  chosen.value = String(joined && last ? last : last + 1);
  joined = false;
  say(`Answer ${place}: rank ${chosen.value}.`);
};
const grade = (value) => {
  const at = grades().indexOf("");
  const wanted = at >= 0 && all(".answer")[at].querySelector(`[data-grade][value="${value}"]`);
  if (!wanted) return;
  wanted.checked = true;
  mark();
  say(`Answer ${at + 1}: ${value}.`);
};
const save = () => {
  const given = task?.kind === "ranking" ? places() : grades();
  if (given.includes("")) { say(`Answer ${given.indexOf("") + 1} is still missing.`); return; }
  if (task.kind === "rating") { judge({ ratings: given.map(Number) }, "save"); return; }
  const groups = [...new Set(given.map(Number))].sort((a, b) => a - b);
  judge({ ranking: groups.map((at) => given.flatMap((one, i) => (Number(one) === at ? [i + 1] : []))) }, "save");
};
const clear = () => {
  all("[data-rank]").forEach((one) => { one.value = ""; });
  all("[data-grade]").forEach((one) => { one.checked = false; });
  joined = false;
  mark();
};
const act = (name) => {
  if (name === "undo") { if (undo && !waiting) send({ do: "undo", ...seat, token: undo }, name); }
  else if (name === "save") save();
  else if (name.startsWith("choose:")) {
    const choice = name.slice("choose:".length);
    judge({ choice: choice === "skip" ? choice : Number(choice) }, name);
  }
};
const pressed = (key) => {
  const kind = task?.kind;
  if (key === "u") act("undo");
  else if (!task) return false;
  else if (key === "s") act("choose:skip");
  else if (key === "r") find("[data-reason]").focus();
  else if (key === "0" && kind !== "rating") act("choose:0");
  else if (/^[1-9]$/.test(key) && kind === "pair" && Number(key) <= task.shown.length) act(`choose:${key}`);
  else if (/^[1-9]$/.test(key) && kind === "ranking") rank(Number(key));
  else if (/^[1-5]$/.test(key) && kind === "rating") grade(Number(key));
  else if (key === "=" && kind === "ranking") joined = true;
  else if (key === "Backspace" && kind !== "pair") clear();
  else if (key === "Enter" && kind !== "pair") save();
  else return false;
  return true;
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("textarea, select, input:not([type=radio]):not([type=checkbox]), summary");
  if (event.key === "Escape" && event.target === find("[data-reason]")) find(".question")?.focus();
  if (typing || event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.isComposing) return;
  if (!seat || find("[data-judging]").hidden || !find("[data-keys]").checked) return;
  if (event.key === "Enter" && event.target.closest("button, a")) return; // that is the button's
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (pressed(key)) event.preventDefault();
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.act) act(button.dataset.act);
  else if (button.matches("[data-again]") && waiting) send(waiting.message, waiting.mark);
  else if (button.matches("[data-more]")) addAnswer();
});
element.addEventListener("change", (event) => { if (event.target.matches("[data-grade]")) mark(); });

// Who judges what.
const begin = () => {
  const form = find("[data-seat]");
  const project = form.project.value, name = form.name.value.trim();
  if (!project || !name) return;
  seat = { project, name, order: form.order.value, overlap: Number(asked.get("overlap")) || null };
  memory(localStorage, "alignlab-name", name);
  const address = new URLSearchParams({ project, name, order: seat.order });
  if (seat.overlap) address.set("overlap", seat.overlap);
  history.replaceState(null, "", `${location.pathname}?${address}`);
  find("[data-seated]").textContent = `${project}, judged by ${name}`;
  find("[data-seating]").open = false;
  measured = 0;
  waiting = null;
  find("[data-agreement-box]").hidden = true;
  const before = memory(sessionStorage, DRAFT);
  const same = before && before.project === project && before.name === name;
  if (same && before.waiting) send(before.waiting.message, before.waiting.mark);
  else send({ do: "next", ...seat, current: same ? before.current : null });
};
const listProjects = async (wanted) => {
  const reply = await call({ do: "open" });
  if (!reply.ok) { complain(reply.error, false); return; }
  const form = find("[data-seat]"), chosen = wanted || form.project.value;
  form.project.replaceChildren(...reply.projects.map((name) => new Option(name, name)));
  if (reply.projects.includes(chosen)) form.project.value = chosen;
  find("[data-empty]").hidden = reply.projects.length > 0;
  find("[data-begin]").disabled = reply.projects.length === 0;
  if (!reply.projects.length && find("[data-adding]")) find("[data-adding]").open = true;
};
find("[data-seat]").addEventListener("submit", (event) => { event.preventDefault(); if (!busy) begin(); });

// Files and forms.
const told = (where, words, lines = []) => {
  const place = find(where);
  place.replaceChildren(...[words, ...lines].map((line) => {
    const one = document.createElement("p");
    one.textContent = line;
    return one;
  }));
};
const asBase64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(String(reader.result).split(",")[1] || "");
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});
const added = async (where, reply) => {
  told(where, reply.ok ? reply.said : reply.error, reply.left_out?.map((line) => `Left out, ${line}`));
  if (!reply.ok) return;
  await listProjects(reply.project);
  if (seat?.project === reply.project && !task && !busy) begin();
};
const addAnswer = () => {
  const number = all("[data-answer]").length + 1;
  const label = find("[data-answer]").closest("label").cloneNode(true);
  label.querySelector("span").textContent = `Answer ${number}`;
  label.querySelector("textarea").value = "";
  find("[data-more]").before(label);
  label.querySelector("textarea").focus();
};
const submitted = (selector, work) => find(selector)?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button[type=submit]");
  if (button.disabled) return;
  button.disabled = true;
  try { await work(event.target); } finally { button.disabled = false; }
});
submitted("[data-upload]", async (form) => {
  const file = form.file.files[0];
  if (!file) return;
  told("[data-upload-told]", "Reading…");
  const message = { do: "import", project: form.project.value.trim(), file: file.name, content: await asBase64(file),
                    kind: form.kind.value, keep: form.keep.checked, skip_broken: form.skip.checked };
  await added("[data-upload-told]", await call(message));
});
submitted("[data-typed]", async (form) => {
  const answers = all("[data-answer]").map((one) => one.value);
  const message = { do: "add", project: form.project.value.trim(), prompt: form.prompt.value, answers,
                    kind: form.kind.value };
  await added("[data-typed-told]", await call(message));
});
submitted("[data-export]", async (form) => {
  const project = find("[data-seat]").project.value;
  told("[data-export-told]", "Writing…");
  const reply = await call({ do: "export", project, format: form.format.value });
  told("[data-export-told]", reply.ok ? reply.said : reply.error);
  if (!reply.ok) return;
  const bytes = Uint8Array.from(atob(reply.content), (sign) => sign.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = reply.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

const start = async () => {
  const form = find("[data-seat]");
  form.name.value = asked.get("name") || memory(localStorage, "alignlab-name") || "";
  if ([...form.order.options].some((one) => one.value === asked.get("order"))) form.order.value = asked.get("order");
  await listProjects(asked.get("project"));
  const there = asked.get("project") === null || form.project.value === asked.get("project");
  if (!there) complain(`There is no project ${asked.get("project")} in this database.`, false);
  else if (asked.get("project") && form.name.value) begin();
};
start();
