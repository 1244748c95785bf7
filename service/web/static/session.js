// The token of this tab, and every request that needs it. A token is sent in a header and never in a cookie or
// an address: no other site can make the browser send it, and no log holds it.
"use strict";

const TOKEN_KEY = "tide-token";

// fetch with this tab's token; a refusal ends the session, wherever on the page it is met.
async function fetchSignedIn(address, options = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(address, { ...options, headers, cache: "no-store" });
  if (response.status === 401) signOut("The server refused this tab's token: it was revoked or has expired.");
  return response;
}

function signOut(reason) {
  sessionStorage.removeItem(TOKEN_KEY);
  if (document.getElementById("sign-in")) return;
  if (reason) sessionStorage.setItem(`${TOKEN_KEY}-refused`, reason);
  location.reload();
}

// The same address once more, with the token: what the server sends takes the place of the sign-in.
async function openPage() {
  const response = await fetchSignedIn(location.href, { headers: { accept: "text/html" } });
  if (response.status === 401) return "The server does not know this token, or it was revoked or has expired.";
  if (!response.ok) return `The server answered ${response.status}. There may be no such page.`;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  document.title = page.title;
  for (const part of ["header > .quiet", "main"]) {
    document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
  }
  return "";
}

function showSignIn(section, start) {
  const alert = section.querySelector("[role=alert]");
  const tell = (message) => {
    alert.textContent = message;
    alert.hidden = !message;
  };
  const enter = async () => {
    const message = await openPage().catch(() => "The server does not answer. Try again.");
    if (!message) start();
    else tell(message);
  };
  section.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN_KEY, section.querySelector("#token").value.trim());
    enter();
  });
  tell(sessionStorage.getItem(`${TOKEN_KEY}-refused`) ?? "");
  sessionStorage.removeItem(`${TOKEN_KEY}-refused`);
  if (sessionStorage.getItem(TOKEN_KEY)) enter();
}

// Run `start` once the page may be seen: at once where the server asks for no token.
function whenSignedIn(start) {
  const button = document.getElementById("sign-out");
  button.addEventListener("click", () => signOut());
  const begin = () => {
    button.hidden = !sessionStorage.getItem(TOKEN_KEY);
    start();
  };
  const section = document.getElementById("sign-in");
  if (section) showSignIn(section, begin);
  else begin();
}
