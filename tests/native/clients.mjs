// What clients in JavaScript make of an answer, as a JSON object: NAME -> [text, refusal or null, reason of the end].
// Environment: BASE (of the server), KEY, PROMPT. test_guard_clients_js.py runs it beside the packages.
import Anthropic from "@anthropic-ai/sdk";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const { BASE, KEY, PROMPT } = process.env;
globalThis.AI_SDK_LOG_WARNINGS = false;
const asked = { model: "any", messages: [{ role: "user", content: PROMPT }] };

const openai = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, maxRetries: 0 });
const choice = ({ choices: [{ message, finish_reason }] }) => [message.content, message.refusal, finish_reason];
const response = (reply) => [reply.output_text, reply.output.at(-1).content[0].refusal ?? null, reply.status];

const anthropic = new Anthropic({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const message = (reply) => [
  reply.content.map((block) => block.text).join("|"), reply.stop_details?.explanation ?? null, reply.stop_reason,
];

const options = { baseURL: `${BASE}/v1`, apiKey: KEY };
const models = {
  "@ai-sdk/openai-compatible": createOpenAICompatible({ name: "so8t", ...options })("any"),
  "@ai-sdk/openai": createOpenAI(options).chat("any"),
  "@ai-sdk/openai responses": createOpenAI(options).responses("any"),
};

const found = {
  "openai": choice(await openai.chat.completions.create(asked)),
  "openai stream": choice(await openai.chat.completions.stream(asked).finalChatCompletion()),
  "openai responses": response(await openai.responses.create({ model: "any", input: PROMPT })),
  "openai responses stream": response(await openai.responses.stream({ model: "any", input: PROMPT }).finalResponse()),
  "anthropic": message(await anthropic.messages.create({ ...asked, max_tokens: 64 })),
  "anthropic stream": message(await anthropic.messages.stream({ ...asked, max_tokens: 64 }).finalMessage()),
};
for (const [name, model] of Object.entries(models)) {
  const whole = await generateText({ model, prompt: PROMPT, maxRetries: 0 });
  found[name] = [whole.text, null, whole.finishReason];
  const streamed = streamText({ model, prompt: PROMPT, maxRetries: 0 });
  let text = "";
  for await (const delta of streamed.textStream) text += delta;
  found[`${name} stream`] = [text, null, await streamed.finishReason];
}
console.log(JSON.stringify(found));
