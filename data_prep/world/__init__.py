"""The embedded world: scenes of coloured shapes and what people would say about them.

`vocabulary` names the kinds of objects and splits them between the domains, `scene` places them,
`drawing` paints them, `referring` decides what a phrase picks out, `captions`, `questions`,
`expressions` and `hypotheses` speak, and `annotations` writes it all in the files of COCO, VQAv2,
REFER and SNLI-VE. The public entry is `data_prep.synthetic`.
"""
