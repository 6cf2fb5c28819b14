"""Icon sets: one concept drawn in many styles, with captions and held-out combinations.

A set is an IconifyJSON file, such as the `@iconify-json/*` packages of npm hold, or a folder of
pictures whose file names say what they show. Every set is a style.

- `icon_set`: what a set holds. `iconify` and `picture_folder` read one, `find` reads all below a
  path.
- `naming`, `emoji_names`, `concepts`: names of icons to concepts that the sets have in common.
- `groups`: which icons are held out, and in what sense they are new.
- `captions`, `render`: the texts and the picture of an icon.
- `records`: all of it as `Records`, drawn when asked for.
"""
