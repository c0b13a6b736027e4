// Keyboard shortcuts, copy buttons and menus that submit their form. Every page works without this script.
"use strict";

document.documentElement.classList.add("scripted");

/** Return the text of an element without the numbers of its sub-captions. */
function plainText(element) {
  const copy = element.cloneNode(true);
  for (const number of copy.querySelectorAll(".number")) number.remove();
  return copy.textContent.trim().replace(/[ \t]+/g, " ");
}

/** Copy a text; without the clipboard's permission, by the browser's older command. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

document.addEventListener("click", async event => {
  const button = event.target.closest("button[data-copy]");
  if (button) {
    event.preventDefault();  // a button in a summary does not open it
    const elements = document.querySelectorAll(button.dataset.copy);
    await copyText([...elements].map(plainText).join("\n\n"));
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1200);
  }
  // Selecting a part of a shortened text does not open it.
  if (event.target.closest("summary") && String(getSelection())) event.preventDefault();
});

document.addEventListener("change", event => {
  if (event.target.matches("[data-submit]")) event.target.form.submit();
});

document.addEventListener("keydown", event => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const element = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!element) return;
  event.preventDefault();
  if (element.matches("input")) element.focus();
  else element.click();
});
