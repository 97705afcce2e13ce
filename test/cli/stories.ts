/**
 * Stories for `Scenario` as text, a paragraph each: `# name`, then lines. What begins with `= ` is done by QEMU's
 * tools in both directories, the others by both tools, to be compared.
 */

import { it, type TestContext } from "node:test";
import { Scenario } from "./scenario.ts";

/** A test for each story; `tidy` as of `Scenario`. */
export function tell(stories: string, tidy?: (directory: string) => void): void {
  for (const story of stories.trim().split(/\n{2,}/)) {
    const [name = "", ...lines] = story.split("\n");
    it(name.replace(/^# /, ""), async (test: TestContext) => {
      const scenario = new Scenario(test, tidy);
      for (const line of lines)
        if (line.startsWith("= ")) scenario.given(line.slice(2));
        else await scenario.same(line);
    });
  }
}
