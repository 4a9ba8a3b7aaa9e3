#!/usr/bin/env bash
# One would expect: a streamed refusal (delta.refusal, finish_reason "content_filter") reaches an AI SDK program as a
# refusal, or not at all.
# What happens: @ai-sdk/openai-compatible makes ordinary text of delta.refusal, glued to the half answer before it
# without a space. A server that puts the refusal into content too, for clients that know no refusal field, has it shown
# twice.
# Versions: ai 7.0.173, @ai-sdk/openai-compatible 3.0.92. Needs node 20 or newer and npm.
# Why it matters: most web chats on local servers are built on it. A refusal looks like the model's words and goes back
# into the next prompt as such.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-audit --no-fund --prefix "$dir" ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 >/dev/null
cat > chat.mjs <<'JS'
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

for (const name of ["ai", "@ai-sdk/openai-compatible"]) {
  console.log(name, JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version);
}

async function ask(deltas) {
  const server = createServer((request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    for (const delta of [...deltas, {}]) {
      const choice = { index: 0, delta, finish_reason: Object.keys(delta).length ? null : "content_filter" };
      response.write(`data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices: [choice] })}\n\n`);
    }
    response.end("data: [DONE]\n\n");
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const provider = createOpenAICompatible({ name: "local", baseURL: `http://127.0.0.1:${server.address().port}/v1` });
  const result = streamText({ model: provider("m"), prompt: "a question" });
  const parts = [];
  for await (const part of result.fullStream) parts.push(part.type);
  const found = { text: await result.text, finishReason: await result.finishReason, types: [...new Set(parts)] };
  server.close();
  return found;
}

const start = { role: "assistant", content: "Half an answer." };
const field = await ask([start, { refusal: "I will not." }]);
const both = await ask([start, { content: " I will not.", refusal: "I will not." }]);
console.log(field);
console.log(both);
assert.equal(field.text, "Half an answer.I will not.");
assert.equal(both.text.split("I will not.").length - 1, 2);
assert.equal(field.finishReason, "content-filter");
assert(!field.types.some((type) => type.includes("refusal")));
console.log("as stated");
JS
node chat.mjs
