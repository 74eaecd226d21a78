// Drives the console as people do: node console.mjs CHROMIUM URL URL_WITH_TOKENS TOKEN [FOLDER FOR PICTURES]

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const [executablePath, url, guarded, token, pictures] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf-8");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1100, height: 760 }, acceptDownloads: true });
const wrong = [];

async function opened(address) {
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => wrong.push(`${error}`));
  page.on("console", (message) => { if (message.type() === "error" && !/status of 4\d\d/.test(message.text())) wrong.push(message.text()); });
  page.on("request", (request) => { if (!request.url().startsWith(address) && !request.url().startsWith("blob:")) wrong.push(`asked ${request.url()}`); });
  await page.goto(`${address}/`);
  return page;
}

async function checked(page, what) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(found.violations.map((each) => `${what}: ${each.id}: ${each.nodes.map((node) => node.html).join(" | ")}`), []);
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: `${pictures}/console-${name}.png` });
}

async function call(path, body) {
  const headers = { "X-Statestream": "console", "Content-Type": "application/json" };
  const answer = await fetch(`${url}/console/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

if (url) await plain();
if (guarded) await asking();
assert.deepEqual(wrong, []);
await browser.close();

function wave(at) {
  return [Math.sin(at / 6), Math.cos(at / 9), Math.sin(at / 15) / 2];
}

async function plain() {
  const page = await opened(url);
  const heading = (text) => page.getByRole("heading", { level: 1, name: text, exact: true }).waitFor();
  const go = async (name) => { await page.getByRole("navigation").getByRole("link", { name, exact: true }).click(); await heading(name); };

  // Models, from the root; the keyboard gets past the navigation.
  await page.getByRole("heading", { name: "lstm · version 1" }).waitFor();
  await page.getByText("rows answer with the same bits", { exact: false }).first().waitFor();
  await checked(page, "models");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Tab"); await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Sessions");
  await page.keyboard.press("Enter");
  await heading("Sessions");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await page.getByText("There are no sessions yet").waitFor();

  // Steps by hand; what is wrong is said beside the form.
  await go("Try");
  await page.getByLabel("Model").selectOption("lstm");
  await page.getByLabel("Session, made if there is none").fill("pump-1");
  await page.getByLabel(/^x: float32/).fill("1, 2");
  await page.getByRole("button", { name: "Step", exact: true }).click();
  await page.getByRole("alert").getByText("expected 3 for each step").waitFor();
  await checked(page, "try");
  await page.getByLabel(/^x: float32/).fill("0.1, 0.2, 0.3");
  await page.getByRole("button", { name: "Step", exact: true }).click();
  await page.getByText("Applied: position 1").waitFor();

  // The session, live: steps of others are seen.
  await page.getByRole("link", { name: "Look at the session" }).click();
  await heading("Session pump-1");
  await page.getByText("Nothing was applied since").waitFor();
  for (let at = 0; at < 90; at++) await call("step", { model: "lstm", id: "pump-1", inputs: wave(at) });
  await page.locator("dd").getByText("91", { exact: true }).first().waitFor();
  await page.locator(".chart .line").first().waitFor();
  await checked(page, "session");
  await picture(page, "session");
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "Snapshot" }).click();
  assert.equal((await download).suggestedFilename(), "pump-1-91.safetensors");
  await page.getByLabel("Id of the copy").fill("pump-1/copy");
  await page.getByRole("button", { name: "Fork" }).click();
  await heading("Session pump-1/copy");
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("button", { name: "Delete for ever?" }).click();
  await heading("Sessions");

  // Sessions, found by how they begin, page by page.
  await Promise.all(Array.from({ length: 60 }, (_, at) => call("step", { model: "lstm", id: `turbine-${at + 10}`, inputs: wave(at) })));
  await page.getByLabel("Id begins with").fill("turbine-");
  await page.getByRole("link", { name: "turbine-10", exact: true }).waitFor();
  assert.equal(await page.getByRole("row").count(), 51);
  await picture(page, "sessions");
  await page.getByRole("button", { name: "Next page" }).click();
  await page.getByRole("link", { name: "turbine-69", exact: true }).waitFor();
  assert.equal(await page.getByRole("row").count(), 11);
  // The keyboard stays where it was, though that was the last page; who looks at a session comes back to what was found.
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Page before");
  await page.getByText("Page 2", { exact: true }).waitFor();
  await page.getByRole("link", { name: "turbine-69", exact: true }).click();
  await heading("Session turbine-69");
  await page.goBack();
  await page.getByRole("link", { name: "turbine-69", exact: true }).waitFor();
  assert.equal(await page.getByLabel("Id begins with").inputValue(), "turbine-");
  await page.getByRole("button", { name: "Page before" }).click();
  await page.getByRole("link", { name: "turbine-10", exact: true }).waitFor();
  await checked(page, "sessions");

  // A forecast with a fan, a text by letters, a prediction.
  await go("Try");
  await page.getByLabel("Model").selectOption("deep");
  await page.getByLabel("Session, made if there is none").fill("shop");
  for (let at = 0; at < 30; at++) await call("step", { model: "deep", id: "shop", inputs: { sales: [Math.sin(at / 4)], calendar: [0.5, 0.5] } });
  await page.getByRole("spinbutton", { name: "Steps" }).fill("24");
  await page.getByRole("button", { name: "Forecast" }).click();
  await page.locator(".chart .band").first().waitFor({ state: "attached" });
  await checked(page, "forecast");
  await page.locator(".legend").last().scrollIntoViewIfNeeded();
  await picture(page, "forecast");
  await page.getByLabel("Model").selectOption("letters");
  await page.getByLabel("Text", { exact: true }).first().fill("abc");
  await page.getByRole("button", { name: "Generate" }).click();
  await page.getByText(/\d+ tokens, log-probability/).waitFor();
  await checked(page, "generate");
  await page.getByLabel("Model").selectOption("scores");
  await page.getByRole("button", { name: "Predict" }).click();
  await page.getByRole("region", { name: "Answer" }).waitFor();
  await checked(page, "predict");

  // Batches while steps come; what was refused before.
  await go("Live");
  for (let at = 0; at < 200; at += 20) await Promise.all(Array.from({ length: 20 }, (_, each) => call("step", { model: "lstm", id: `turbine-${each + 10}`, inputs: wave(at + each) })));
  await page.locator(".chart .line").first().waitFor();
  await page.getByRole("table").filter({ hasText: "(this one)" }).waitFor();
  await checked(page, "live");
  await picture(page, "live");
  await go("Refusals");
  await page.getByRole("cell", { name: "BAD_TENSOR" }).first().waitFor();
  await checked(page, "refusals");
  // The keyboard stays in a table, and where it was scrolled to, though the table is shown anew every two seconds.
  await page.getByRole("region", { name: "Refusals" }).focus();
  const cell = await page.getByRole("cell", { name: "BAD_TENSOR" }).first().elementHandle();
  await page.waitForFunction((old) => !old.isConnected, cell);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Refusals");
  // What is not there, or may not be seen, is said where it would stand, and stays.
  await page.goto(`${url}/console/#/session/lstm/nobody`);
  await page.getByRole("alert").getByText("no session 'nobody'").waitFor();

  // Dark, then narrow: nothing is wider than the screen.
  await page.emulateMedia({ colorScheme: "dark" });
  const views = ["Models", "Sessions", "Live", "Refusals", "Try"];
  for (const name of views) { await go(name); await checked(page, `dark ${name}`); if (name === "Models") await picture(page, "dark"); }
  await page.setViewportSize({ width: 360, height: 740 });
  for (const name of views) {
    await go(name);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth) <= 360, `${name} is wider than 360 px`);
  }
  await page.goto(`${url}/console/#/session/lstm/pump-1`);
  await heading("Session pump-1");
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth) <= 360, "a session is wider than 360 px");
  await checked(page, "narrow");
  await page.emulateMedia({ colorScheme: "light" });
  await go("Models");
  await picture(page, "narrow");
  await page.close();
}

async function asking() {
  // Where tokens are asked for.
  const door = await opened(guarded);
  await door.getByRole("heading", { name: "This server asks for a token" }).waitFor();
  await checked(door, "door");
  await door.getByLabel("Token").fill("nonsense");
  await door.getByRole("button", { name: "Enter" }).click();
  await door.getByRole("alert").getByText("UNAUTHENTICATED").waitFor();
  await door.getByLabel("Token").fill(token);
  await door.keyboard.press("Enter");
  await door.getByRole("heading", { name: "lstm · version 1" }).waitFor();
  assert.equal(await door.getByRole("link", { name: "Live" }).count(), 0); // The token has no right to it.
  await door.goto(`${guarded}/console/#/live`);
  await door.getByRole("alert").getByText("PERMISSION_DENIED").waitFor();
  await door.goto(`${guarded}/console/#/models`);
  await door.reload();
  await door.getByRole("heading", { name: "lstm · version 1" }).waitFor();
  await door.getByRole("button", { name: "Forget token" }).click();
  await door.getByRole("heading", { name: "This server asks for a token" }).waitFor();
}
