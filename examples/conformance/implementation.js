// The contract in JavaScript, behind the protocol of the conformance kit: JSON lines over stdio. It needs Node alone.
//
//     tpinit conform --impl 'cmd: node examples/conformance/implementation.js'
//
// Sizes are numbers here, so it skips what a double can't hold.
"use strict";

const INTRODUCTION = {
  version: 1,
  implementation: { name: "example-js", version: "1.0.0", language: `JavaScript (Node ${process.versions.node})` },
  dialects: ["documented"],
};

const given = (pairs) => pairs.filter(([value]) => value !== null && value !== undefined);
const differ = (pairs) => pairs.some(([value]) => value !== pairs[0][0]);
const effective = ([value, source]) => ({ value, source });
const NOTHING = effective([null, null]);

function resolve(input) {
  const { call, mpu, mesh, precision, groups, world_size: world } = input;
  const disabled = input.section?.autotp_size === 0 && input.section.tp_size === null && call === null;
  const section = disabled ? null : input.section;

  // Of each field, all that was given, the effective one first.
  const sizes = given([
    [section?.autotp_size, "config.autotp_size"],
    [section?.tp_size, "config.tp.tp_size"],
    [call?.tp_size, "call.tp_size"],
  ]);
  const dtypes = given([
    [section?.dtype, "config.dtype"],
    [precision, "precision"],
    [call?.dtype, "call.dtype"],
  ]);
  const supplied = given([
    [call?.tp_group, "call.tp_group"],
    [mpu?.tp_group, "mpu.tp_group"],
    [section?.tp_group, "config.tp.tp_group"],
    [mesh, "mesh.tp_group"],
  ]);

  const inScope = call !== null || section !== null;
  const ownGroup = call !== null && call.tp_group !== null;
  const created = section !== null && supplied.length === 0;
  const size = sizes.length ? sizes[0][0] : null;
  const strangers = supplied.some(([one, from], index) =>
    supplied.slice(index + 1).some(([other, whose]) =>
      one !== other && !(from === "call.tp_group" && whose === "mpu.tp_group")));

  const violations = Object.entries({
    NO_TP_INTENT: !inScope && mpu === null,
    NO_GROUP_SOURCE: call !== null && !ownGroup && section === null && mpu === null,
    GROUP_AND_MPU: ownGroup && mpu !== null,
    SIZE_MISSING: section !== null && size === null,
    SIZE_INVALID: sizes.some(([value, from]) => value < 1 && !(from === "config.autotp_size" && value === 0)),
    SIZE_MISMATCH: differ(sizes),
    DTYPE_MISMATCH: inScope && differ(dtypes),
    GROUP_IDENTITY_MISMATCH: inScope && strangers,
    GROUP_SIZE_MISMATCH: inScope && size !== null && supplied.some(([handle]) => groups[handle] !== size),
    SIZE_NOT_DIVIDING_WORLD: created && size !== null && size >= 1 && world % size !== 0,
  }).filter(([, holds]) => holds).map(([code]) => code);

  const ok = violations.length === 0;
  const start = section !== null ? "init_from_config" : call !== null ? "init_from_call" : "no_autotp";
  return {
    row: 1 + 4 * ((call !== null) + ownGroup) + 2 * (section !== null) + (mpu !== null),
    outcome: ok ? start : "error",
    violations,
    tp_size: ok && sizes.length ? effective(sizes[0]) : NOTHING,
    dtype: ok ? effective(dtypes[0] ?? [null, "unset"]) : NOTHING,
    tp_group: ok && inScope ? effective(supplied[0] ?? [null, "created"]) : NOTHING,
    section_disabled: disabled,
  };
}

function safe(value) {
  if (typeof value === "number") return Number.isSafeInteger(value);
  return value === null || typeof value !== "object" || Object.values(value).every(safe);
}

function answer(request) {
  switch (request.cmd) {
    case "start": return INTRODUCTION;
    case "dialect": return { ok: INTRODUCTION.dialects.includes(request.dialect) };
    case "stop": return process.exit(0);
  }
  const { seq } = request;
  if (!safe(request.case)) return { seq, skipped: true, reason: "an integer that a double can't hold" };
  try {
    return { seq, result: resolve(request.case) };
  } catch (error) {
    return { seq, errored: true, message: String(error) };
  }
}

require("node:readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\n"));
