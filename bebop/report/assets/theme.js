"use strict";
// Runs before anything is painted: the reader's choice of light or dark, kept where the browser lets it be kept.
const Theme = (() => {
  const KEY = "bebop-report-theme";
  const stored = () => {
    try { return localStorage.getItem(KEY); } catch (error) { return null; }
  };
  const store = (value) => {
    try { localStorage.setItem(KEY, value); } catch (error) { /* a private window keeps nothing */ }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = stored();
  const current = () => chosen || (system.matches ? "dark" : "light");
  const listeners = [];
  const apply = () => {
    document.documentElement.dataset.theme = current();
    listeners.forEach((listener) => listener());
  };
  system.addEventListener("change", apply);
  apply();
  return {
    current,
    toggle() { chosen = current() === "dark" ? "light" : "dark"; store(chosen); apply(); },
    onChange(listener) { listeners.push(listener); },
  };
})();
