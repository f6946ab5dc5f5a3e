"""Whether a word can be a verb: the common English ones, in every form."""

from __future__ import annotations

from miles_rewards.ifbench.text import listed

_BASES = listed("""
abandon absorb accept access accompany accomplish achieve acknowledge acquire act adapt add address adjust admire admit adopt
advance advise affect afford agree aim align allocate allow alter analyse analyze announce answer anticipate apologise apologize
appear apply appoint appreciate approach approve argue arrange arrive ask assemble assess assign assist assume assure attach attack
attempt attend attract avoid bake balance base bask be beat become begin behave behold believe belong bend bet blend block blow boil
boost borrow bother bounce breathe bring broaden build burn buy calculate call calm capture care carry cast catch cause celebrate
challenge change chase chat check cherish choose chop circle claim clarify classify clean clear click climb close collaborate
collect combine come commit communicate compare compile complete compose compute conceive concentrate conclude conduct confirm
connect consider consist construct consult consume contact contain continue contribute convert convince cook cool cope copy correct
count cover craft create cross cry cultivate cut dance dare deal debate decide declare decorate decrease dedicate define delay
delegate delete deliver delve demand demonstrate deny depend deploy derive describe deserve design desire destroy detail detect
determine develop devise devote dig diminish dine discard discover discuss display dispose dissolve distinguish distribute dive
divide do document dominate donate double doubt download draft drag draw dream dress drift drink drive drop dry earn ease eat edit
educate elevate eliminate embark embrace emerge emphasise emphasize employ empower enable encounter encourage end endure engage
enhance enjoy enrich enroll ensure enter entertain envision escape establish estimate evaluate evolve examine exceed exchange
execute exercise exist expand expect experience experiment explain explore export express extend extract face facilitate fail fall
familiarise familiarize favor favour fear feature feed feel fetch fight figure file fill filter finalise finalize find finish fit
fix flatten flip float flow fly focus fold follow force forget forgive form formulate foster fry fulfil fulfill gain gather gaze
generate get give glance glide go grab grant grasp greet grind grow guarantee guard guess guide handle hang happen harness harvest
hate have head heal hear heat help hide highlight hike hire hit hold honor honour hope host hug hunt hurry identify ignite
illustrate imagine immerse implement import improve include incorporate increase indicate infer influence inform initialise
initialize initiate inject insert insist inspect inspire install instruct integrate intend interact interpret introduce invent
invest investigate invite involve isolate join journey judge jump justify keep kick kill know label laugh launch lay lead lean leap
learn leave lend let leverage lie lift light like limit link list listen live load locate lock log look lose love lower maintain
make manage manipulate map mark master match maximise maximize mean measure meditate meet melt memorise memorize mention merge mind
minimise minimize miss mix modify monitor motivate move multiply name narrow navigate need negotiate notice note nurture obey
observe obtain occur offer open operate optimise optimize order organise organize outline overcome overlook own pack paint
participate partner pass pause pay perceive perform permit persist persuade pick place plan plant play plead plot point polish
ponder pop pour practice practise praise pray predict prefer prepare present preserve press prevent print prioritise prioritize
proceed process produce program progress project promise promote prompt propose protect prove provide pull purchase pursue push put
qualify question quit quote raise reach react read realise realize rearrange recall receive recite reckon recognise recognize
recommend reconsider record recover recycle redefine reduce refer refine reflect refresh refuse regard register regret regulate
rehearse reinforce reject relate relax release rely remain remember remind remove render renew repair repeat replace reply report
represent request require rescue research reserve reset resist resolve respect respond rest restart restore restrict result retain
retire retrieve return reveal reverse review revise revisit revolve reward ride ring rise risk roast roll rotate run sail satisfy
save savor say scale scan schedule score search seat secure see seek seem seize select sell send sense separate serve set settle sew
shake shape share shift shine shoot shop show shut sign signal simplify simulate sing sink sit sketch skip sleep slice slide slow
smell smile snap soar solve sort sound speak specify speed spell spend spin split spot spread sprinkle stack stand standardise start
state stay steal steer step stick stir stop store streamline strengthen stress stretch strike strive structure struggle study submit
succeed suffer suggest sum summarise summarize supply support suppose surround survive suspect sustain sway swim switch symbolise
synthesize take talk tap taste teach tear tell tend test thank think thrive throw tie toast toss touch tour trace track trade train
transfer transform translate travel treat trim trust try tune turn twist understand undertake unite unleash unlock unveil update
upgrade upload urge use utilise utilize validate value vary verify view visit visualise visualize vote wait wake walk wander want
warm warn wash watch wear weave weigh welcome whisk whisper win wish wonder work worry wrap write yearn yield zoom
""")
_IRREGULAR = listed("""
am are is was were been being became began begun bent bet bit bitten bled blew blown bought bore born bound broke broken brought
built burnt came cast caught chose chosen clung crept cut dealt did does done drank drawn drew driven drove drunk dug ate eaten
fallen fed fell felt flew flown forgave forgot forgotten fought found froze frozen gave given gone got gotten grew grown had has
heard held hid hidden hurt kept knew known laid led left lent lit lost made meant met paid proved put ran rang read ridden risen
rode rose said sang sat saw seen sent shaken shone shook shot shown shut slept slid sold sought spent spoke spoken spread stood
stole stolen struck stuck sung swam swept swore swum taken taught thought threw thrown told took tore torn understood went woke won
wore worn woven wrote written
""")


def is_verb(word: str) -> bool:
    """Whether a word is a form of a common verb. Where a word can be a noun, too, it counts."""
    lower = word.lower()
    stem, mark, _ = lower.partition("'")
    return lower in _FORMS or (bool(mark) and stem in ("let", "don", "isn", "aren", "wasn", "doesn", "didn", "haven", "hasn"))


def _forms(base: str) -> set[str]:
    stem = base[:-1] if base.endswith("e") and not base.endswith(("ee", "ye", "oe")) else base
    doubled = (
        base + base[-1]
        if len(base) > 2 and base[-1] not in "aeiouwxy" and base[-2] in "aeiou" and base[-3] not in "aeiou"
        else stem
    )
    third = base[:-1] + "ies" if base.endswith("y") and base[-2] not in "aeiou" else f"{base}s"
    past = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else f"{stem}ed"
    return {base, third, f"{base}es", past, f"{doubled}ed", f"{stem}ing", f"{doubled}ing", "lying", "dying", "tying"}


_FORMS = frozenset(_IRREGULAR).union(*map(_forms, _BASES))
