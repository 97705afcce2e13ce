/**
 * JSON as QEMU's tools read it in `json:` names: strings may also stand in single quotes, a key may come once, and
 * errors have QEMU's words. RFC 8259 is the grammar otherwise.  @qemu qobject/json-parser.c
 */

import { BlockError } from "./errors.ts";

export type JsonValue = string | number | boolean | null | readonly JsonValue[] | JsonObject;

interface JsonObject {
  readonly [key: string]: JsonValue;
}

/** Deeper nesting is refused: each level is a call. */
const MAX_DEPTH = 1024;

/** The one value that `text` holds; EINVAL with what is wrong. */
export function parseJson(text: string): JsonValue {
  const reader = new Reader(text);
  if (reader.peek() === undefined) throw new BlockError("EINVAL", "Expecting a JSON value");
  const value = readValue(reader, 0);
  if (reader.peek() !== undefined) throw new BlockError("EINVAL", "Expecting at most one JSON value");
  return value;
}

function parseError(what: string): BlockError {
  return new BlockError("EINVAL", `JSON parse error, ${what}`);
}

type Token =
  | { readonly type: "punctuation" | "keyword"; readonly text: string }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "number"; readonly value: number };

/** Cuts the text into tokens, one at a time. */
class Reader {
  readonly #text: string;
  #at = 0;
  #next: Token | undefined;

  constructor(text: string) {
    this.#text = text;
  }

  /** The next token, which stays; undefined at the end. */
  peek(): Token | undefined {
    this.#next ??= this.#read();
    return this.#next;
  }

  take(): Token {
    const token = this.peek();
    if (!token) throw parseError("premature EOI");
    this.#next = undefined;
    return token;
  }

  /** Takes the next token if it is this sign. */
  takeIf(sign: string): boolean {
    const token = this.peek();
    if (token?.type !== "punctuation" || token.text !== sign) return false;
    this.#next = undefined;
    return true;
  }

  #read(): Token | undefined {
    const text = this.#match(/[ \t\r\n]*/y) && this.#text[this.#at];
    if (text === undefined) return undefined;
    if ("{}[]:,".includes(text)) {
      this.#at++;
      return { type: "punctuation", text };
    }
    const word = this.#match(/[a-z]+/y)?.[0];
    if (word !== undefined) return { type: "keyword", text: word };
    if (text === '"' || text === "'") return this.#readString(text);
    return this.#readNumber();
  }

  #readString(quote: string): Token {
    const pattern = quote === '"' ? /"(?:[^"\\\p{Cc}]|\\.)*/uy : /'(?:[^'\\\p{Cc}]|\\.)*/uy;
    const raw = (this.#match(pattern) as RegExpExecArray)[0];
    if (this.#text[this.#at] !== quote) throw parseError(`stray '${raw}${this.#text[this.#at] ?? ""}'`);
    this.#at++;
    return { type: "string", value: unescape(raw.slice(1) + quote) };
  }

  #readNumber(): Token {
    // As far as it could still become a number, and then the sign that spoils it.
    const start =
      this.#match(/-?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?/y)?.[0] ?? "";
    const spoiler = this.#text[this.#at] ?? "";
    const isWhole = /^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$/.test(start);
    if (!isWhole || /[0-9]/.test(spoiler)) throw parseError(`stray '${start}${spoiler}'`);
    // Minus zero is zero.
    return { type: "number", value: Number(start) || 0 };
  }

  #match(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (!match) return undefined;
    this.#at += match[0].length;
    return match;
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

const SURROGATES = /^\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})$/i;

/** `raw` with its closing quote, which an escape that is cut short shows in its error. */
function unescape(raw: string): string {
  const escapes = /\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\u.{0,4}|\\./gsu;
  return raw.replace(escapes, unescapeOne).slice(0, -1);
}

function unescapeOne(escape: string): string {
  if (escape[1] !== "u") {
    const text = ESCAPES[escape[1] as string];
    if (text === undefined) throw parseError("invalid escape sequence in string");
    return text;
  }
  const [, high, low] = SURROGATES.exec(escape) ?? [];
  if (high !== undefined && low !== undefined)
    return String.fromCharCode(Number.parseInt(high, 16), Number.parseInt(low, 16));
  const code = /^\\u[0-9a-f]{4}$/i.test(escape) ? Number.parseInt(escape.slice(2), 16) : 0;
  const isNoncharacter = (code & 0xfffe) === 0xfffe || (code >= 0xfdd0 && code <= 0xfdef);
  // NUL, which no name has in it, stands here for what is no number too.
  if (code === 0 || isNoncharacter || (code >= 0xd800 && code <= 0xdfff))
    throw parseError(`${escape} is not a valid Unicode character`);
  return String.fromCharCode(code);
}

function readValue(reader: Reader, depth: number): JsonValue {
  if (depth > MAX_DEPTH) throw parseError("nesting is too deep");
  const token = reader.take();
  switch (token.type) {
    case "string":
    case "number":
      return token.value;
    case "keyword":
      if (token.text === "true") return true;
      if (token.text === "false") return false;
      if (token.text === "null") return null;
      throw parseError(`invalid keyword '${token.text}'`);
    case "punctuation":
      if (token.text === "{") return readObject(reader, depth);
      if (token.text === "[") return readArray(reader, depth);
      throw parseError("expecting value");
  }
}

function readObject(reader: Reader, depth: number): JsonValue {
  const members: Record<string, JsonValue> = Object.create(null) as Record<string, JsonValue>;
  if (reader.takeIf("}")) return members;
  do {
    const key = readValue(reader, depth + 1);
    if (typeof key !== "string") throw parseError("key is not a string in object");
    if (!reader.takeIf(":")) throw missing(reader, "missing : in object pair");
    const value = readValue(reader, depth + 1);
    if (key in members) throw parseError("duplicate key");
    members[key] = value;
  } while (reader.takeIf(","));
  if (!reader.takeIf("}")) throw missing(reader, "expected separator in dict");
  return members;
}

function readArray(reader: Reader, depth: number): JsonValue {
  const items: JsonValue[] = [];
  if (reader.takeIf("]")) return items;
  do items.push(readValue(reader, depth + 1));
  while (reader.takeIf(","));
  if (!reader.takeIf("]")) throw missing(reader, "expected separator in list");
  return items;
}

/** What stands in place of a sign that is missing matters only if there is something. */
function missing(reader: Reader, what: string): BlockError {
  return parseError(reader.peek() === undefined ? "premature EOI" : what);
}
