(* Reads one question a line and prints the answer of the extracted definitions: `resolve` for an input of 14 tokens,
   `tp_groups` and `dp_groups` for "topology world tp_size", `pieces` for "pieces unit parts index block...". Every
   integer is in binary, so that nothing here computes with one; a member of an enum is its place in the list of all;
   "-" is what is not given.

   input     world  call.tp_size call.dtype call.tp_group  section autotp_size tp_size dtype tp_group carried
             precision  mpu.tp_group mpu.dp_group  mesh
   decision  row outcome tp_size dtype tp_group section_disabled world dp_group carried prose_outcome violation...

   A group is identity:size. An effective value is source=value; a violation is code[source=value,...]. *)

open Contract

exception Malformed of string

let positive_of digits =
  if digits = "" || digits.[0] <> '1' then raise (Malformed digits);
  let found = ref XH in
  String.iteri
    (fun place digit ->
      if place > 0 then
        match digit with
        | '0' -> found := XO !found
        | '1' -> found := XI !found
        | _ -> raise (Malformed digits))
    digits;
  !found

let z_of text =
  if text = "0" then Z0
  else if text <> "" && text.[0] = '-' then Zneg (positive_of (String.sub text 1 (String.length text - 1)))
  else Zpos (positive_of text)

let rec digits_of = function
  | XH -> "1"
  | XO higher -> digits_of higher ^ "0"
  | XI higher -> digits_of higher ^ "1"

let text_of = function
  | Z0 -> "0"
  | Zpos digits -> digits_of digits
  | Zneg digits -> "-" ^ digits_of digits

let place_in all member =
  let rec look place = function
    | [] -> raise (Malformed "a member that is not in the list of all")
    | one :: rest -> if one = member then string_of_int place else look (place + 1) rest
  in
  look 0 all

let given read text = if text = "-" then None else Some (read text)
let shown show = function None -> "-" | Some x -> show x

let dtype_of text =
  match List.nth_opt dType_all (int_of_string text) with Some found -> found | None -> raise (Malformed text)

let group_of text =
  match String.split_on_char ':' text with
  | [ identity; size ] -> (z_of identity, z_of size)
  | _ -> raise (Malformed text)

let show_dtype = place_in dType_all
let show_group (identity, size) = text_of identity ^ ":" ^ text_of size

let show_value = function
  | SizeValue size -> "s" ^ text_of size
  | DTypeValue dtype -> "d" ^ show_dtype dtype
  | GroupValue group -> "g" ^ show_group group

let show_evidence (source, value) = place_in source_all source ^ "=" ^ show_value value

let show_violation (code, evidence) =
  place_in violationCode_all code ^ "[" ^ String.concat "," (List.map show_evidence evidence) ^ "]"

let show_effective show = shown (fun (source, value) -> place_in source_all source ^ "=" ^ shown show value)

let input_of = function
  | [ world; size; dtype; group; present; autotp; alias; config_dtype; config_group; carried; precision; mpu; dp;
    mesh ] ->
    { input_world_size = z_of world;
      input_call =
        given (fun size -> { call_tp_size = z_of size; call_dtype = dtype_of dtype;
          call_tp_group = given group_of group }) size;
      input_section =
        given
          (fun _ ->
            { section_autotp_size = given z_of autotp;
              section_tp_size = given z_of alias;
              section_dtype = given dtype_of config_dtype;
              section_tp_group = given group_of config_group;
              section_carried = carried })
          present;
      input_precision = given dtype_of precision;
      input_mpu = given (fun group -> { mpu_tp_group = group_of group; mpu_dp_group = given Fun.id dp }) mpu;
      input_mesh = given group_of mesh }
  | tokens -> raise (Malformed (String.concat " " tokens))

let show_decision input =
  let decided = resolve concrete_groups input in
  String.concat " "
    ([ shown text_of decided.decision_row;
       place_in outcome_all decided.decision_outcome;
       show_effective text_of decided.decision_tp_size;
       show_effective show_dtype decided.decision_dtype;
       show_effective show_group decided.decision_tp_group;
       (if decided.decision_section_disabled then "1" else "0");
       text_of decided.decision_world_size;
       shown Fun.id decided.decision_dp_group;
       shown Fun.id decided.decision_carried;
       place_in outcome_all (prose_outcome concrete_groups input) ]
    @ List.map show_violation decided.decision_violations)

let show_ranks ranks = String.concat "," (List.map text_of ranks)
let show_groups groups = String.concat ";" (List.map show_ranks groups)

let answer = function
  | [ "topology"; world; size ] ->
    let world, size = (z_of world, z_of size) in
    show_groups (tp_groups world size) ^ " " ^ show_groups (dp_groups world size)
  | "pieces" :: length_of_unit :: parts :: index :: blocks ->
    pieces (List.map z_of blocks) (z_of length_of_unit) (z_of parts) (z_of index)
    |> List.map (fun (offset, held) -> text_of offset ^ ":" ^ text_of held)
    |> String.concat " "
  | tokens -> show_decision (input_of tokens)

let () =
  try
    while true do
      print_endline (answer (String.split_on_char ' ' (input_line stdin)))
    done
  with
  | End_of_file -> ()
  | Malformed text | Failure text ->
    prerr_endline ("not a question: " ^ text);
    exit 2
